"""Claims 1 and 3: one function in several orders of evaluation, and why gates are stabilised; beams.py has claims 2 and 4.

Everything in float64 on grids whose gates are written down, not trained. The node loop that the others are held to is
`impl="nodes"`, which tests/recurrence/test_grid.py holds to the recurrence written out in numpy.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from paperlab.evidence import Laboratory, Outcome
from paperlab.recurrence import dag
from paperlab.recurrence.grid import Edges, Gates, grid_memory

SEEDS = (0, 1, 2)
TRACKING = {"JT": 2, "JO": 2, "JQ": 1, "JK": 2, "JV": 1}
PLAIN = dict.fromkeys(TRACKING, 1)


def random_grid(X: int, Y: int, J: dict[str, int], seed: int, missing: tuple[str, ...] = ()) -> tuple:
    """(q, k, v, gates, direct, entering), small enough that sums over paths stay of order one."""
    rng = np.random.default_rng((seed, X, Y))
    turn = (J["JT"], J["JT"])
    source, mark = (J["JT"], J["JK"], J["JV"]), (J["JO"], J["JQ"], J["JT"])
    tails = dict(zip(Gates._fields, (source, source, turn, turn, turn, turn, mark, mark), strict=True))
    size = 0.45 / J["JT"] ** 0.5
    drawn = {n: None if n in missing else size * rng.normal(size=(X, Y, *tail)) for n, tail in tails.items()}
    gates = Gates(**jax.tree.map(jnp.asarray, drawn))
    q, k = (rng.normal(size=(X, Y, 4, J[j])) for j in ("JQ", "JK"))
    v, direct = rng.normal(size=(X, Y, 4, J["JV"])), rng.normal(size=(X, Y, J["JO"], J["JQ"], J["JK"], J["JV"]))
    entering = Edges(*(jnp.asarray(rng.normal(size=(n, 4, 4, J["JT"]))) for n in (Y, X)))
    return jax.tree.map(jnp.asarray, (q, k, v, gates, direct, entering))


QUICK = {"xla_backend_optimization_level": 0}  # compiling twenty programs is what claim 1 spends its time on


@partial(jax.jit, static_argnames=("impl", "chunk"), compiler_options=QUICK)
def _everything(arguments: tuple, impl: str, chunk: int = 1) -> tuple:
    """Outputs, leaving states, and the gradients of a fixed random linear function of both."""

    def value(arguments: tuple) -> tuple[Array, tuple]:
        q, k, v, gates, direct, entering = arguments
        found = grid_memory(q, k, v, gates, direct, entering=entering, impl=impl, chunk=chunk)
        return jnp.asarray(
            sum((x * jnp.cos(jnp.arange(x.size).reshape(x.shape))).sum() for x in jax.tree.leaves(found))
        ), found

    gradients, found = jax.grad(value, has_aux=True)(arguments)
    return found, gradients


def _worst(got: Any, want: Any) -> float:
    """The largest difference, as a share of the largest number of its array (of one, where that is smaller)."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    return max(float(jnp.abs(a - b).max() / jnp.maximum(jnp.abs(b).max(), 1)) for a, b in pairs)


def _cases() -> dict[str, tuple]:
    """{name: (arguments, sides of blocks)} of the grids of claim 1; a sequence is a grid of one row."""
    cases = {}
    for side, J in ((8, TRACKING), (16, PLAIN)):
        chunks = tuple(2**i for i in range(side.bit_length() - 1))
        for seed in SEEDS:
            cases[f"{side}x{side} seed {seed}"] = (random_grid(side, side, J, seed), chunks)
    row = ("ru", "dl", "du", "source_d", "mark_u")
    cases["32 in a row"] = (random_grid(32, 1, TRACKING, 0, row), (1, 2, 4, 8, 16))
    return cases


def _forms(lab: Laboratory) -> dict[str, dict[str, tuple[float, float]]]:
    """{case: {form: (largest difference of values, of gradients) from the node loop}}."""
    del lab
    found: dict[str, dict[str, tuple[float, float]]] = {}
    with jax.enable_x64(True):
        for name, (arguments, chunks) in _cases().items():
            want = _everything(arguments, "nodes")
            forms: dict[str, dict[str, Any]] = {"hierarchical": {"impl": "hierarchical"}}
            forms |= {f"blocks of {c}": {"impl": "wavefront", "chunk": c} for c in chunks}
            found[name] = {}
            for form, options in forms.items():
                got = _everything(arguments, **options)
                found[name][form] = (_worst(got[0], want[0]), _worst(got[1], want[1]))
    return found


def one_function(lab: Laboratory, *, gradients: bool) -> Outcome:
    """The largest relative difference of any form from the node loop: in values, or in gradients."""
    forms = lab.once("plstm forms", lambda: _forms(lab))
    errors = {case: {form: pair[gradients] for form, pair in row.items()} for case, row in forms.items()}
    return Outcome(max(max(row.values()) for row in errors.values()), details={"largest_relative_difference": errors})


def graph_of_grid(lab: Laboratory) -> Outcome:
    """The grid written as a graph, every edge a state and every turn an arc, against the grid: largest difference, 3 seeds."""
    del lab
    with jax.enable_x64(True):
        per_seed = [_grid_as_graph(8, seed) for seed in SEEDS]
    return Outcome(max(per_seed), per_seed=per_seed)


def _grid_as_graph(side: int, seed: int) -> float:
    q, k, v, gates, direct, _ = random_grid(side, side, PLAIN, seed)
    want, _ = _memory(q, k, v, gates, direct, scale=1.0)
    nodes = np.arange((side + 1) ** 2).reshape(side + 1, side + 1)
    place = {int(nodes[x, y]): (x, y) for x in range(side) for y in range(side)}
    right = [(nodes[x, y], nodes[x + 1, y]) for x, y in place.values()]
    down = [(nodes[x, y], nodes[x, y + 1]) for x, y in place.values()]
    edges, half = np.array(right + down), side * side
    arcs = dag.arcs_of(edges)
    turns = [[gates.rl, gates.dl], [gates.ru, gates.du]]  # [came from above][goes down]
    at = np.array([place[int(edges[later, 0])] for _, later in arcs])
    kind = (arcs >= half).astype(int)
    assert all(turn is not None for row in turns for turn in row)
    stacked = jnp.stack([jnp.stack(row) for row in turns])[..., 0, 0]
    T = stacked[kind[:, 0], kind[:, 1], at[:, 0], at[:, 1]]
    kv = jnp.einsum("xydk,xyvl->xydv", k, v).reshape(half, 4, 4)
    writes = [s.reshape(half)[:, None, None] * kv for s in (gates.source_r, gates.source_d) if s is not None]
    C = dag.dag_scan(T, jnp.concatenate(writes), dag.schedule(len(edges), arcs), jnp.asarray(arcs))
    ends = [i for i, (_, head) in enumerate(edges) if int(head) in place]
    heads = np.array([place[int(edges[i, 1])] for i in ends])
    marks = jnp.stack([gates.mark_l, gates.mark_u])[..., 0, 0, 0]  # type: ignore[arg-type]
    x, y = heads.T
    reading = jnp.einsum("ed,edv->ev", q[x, y, :, 0], C[np.array(ends)])
    weighted = marks[(np.array(ends) >= half).astype(int), x, y][:, None] * reading
    out = jnp.zeros((side, side, 4)).at[x, y].add(weighted)
    own = direct[..., 0, 0, 0, 0, None] * jnp.einsum("xyd,xyd->xy", q[..., 0], k[..., 0])[..., None] * v[..., 0]
    return _worst(out + own, want[..., 0])


def depth(lab: Laboratory) -> Outcome:
    """Merges in a row on a grid of 16 x 16, counted in the program, against steps of an anti-diagonal at a time."""
    del lab
    from paperlab.recurrence.grid_blocks import merges

    side = 16
    pairs = sum(factor.bit_length() - 1 for _, factor in merges((side, side)))
    arguments = random_grid(side, side, PLAIN, 0)[:5]
    text = {
        impl: str(jax.make_jaxpr(partial(grid_memory, impl=impl, chunk=1))(*arguments))
        for impl in ("wavefront", "hierarchical")
    }
    scans = {impl: program.count("scan[") for impl, program in text.items()}
    return Outcome(pairs / 2, 2 * side - 1, details={"one_way_merges": pairs, "scans": scans})


def edge_norms(mode: str, side: int = 64, seed: int = 0) -> dict[str, np.ndarray]:
    """{"l1": [side], "largest": [side]} of the states that leave each anti-diagonal; one unit source, half on each edge.

    mode: "P" (random columns that sum to one), "D" (no turn from left to down, all others one) or "none" (all four one).
    """
    states = _edge_states(mode, side, seed)
    lines = [np.abs([states[:, x, d - x] for x in range(d + 1)]) for d in range(side)]
    return {"l1": np.array([line.sum() for line in lines]), "largest": np.array([line.max() for line in lines])}


_memory = jax.jit(grid_memory, static_argnames=("scale", "impl", "chunk"), compiler_options=QUICK)


def _transitions(mode: str, side: int, seed: int) -> list[np.ndarray]:
    """rl, ru, dl, du, each [side, side]."""
    if mode == "P":
        a, b = np.random.default_rng(seed).uniform(size=(2, side, side))
        return [a, b, 1 - a, 1 - b]
    one = np.ones((side, side))
    return [one, one, one * (mode == "none"), one]


def _edge_states(mode: str, side: int, seed: int) -> np.ndarray:
    """[right or down, side, side]: states on the edges that leave each node, read off `grid_memory`.

    A node one step to the right, with a mark of one on its left edge alone, reads the right edge; likewise below.
    """
    rl, ru, dl, du = (jnp.asarray(t)[..., None, None] for t in _transitions(mode, side + 1, seed))
    one, unit = jnp.ones((side + 1, side + 1, 1, 1)), jnp.zeros((side + 1, side + 1, 1, 1, 1)).at[0, 0].set(0.5)
    read, ignored = one[..., None], jnp.zeros_like(unit)
    found = []
    for marks, part in (((read, ignored), np.s_[1:, :side]), ((ignored, read), np.s_[:side, 1:])):
        gates = Gates(unit, unit, rl, ru, dl, du, *marks)
        out, _ = _memory(one, one, one, gates, scale=1.0, impl="wavefront", chunk=5)
        found.append(np.asarray(out[..., 0, 0])[part])
    return np.stack(found)


def norms(lab: Laboratory) -> dict[str, dict[str, np.ndarray]]:
    """`edge_norms` of the three modes, once."""

    def measured() -> dict[str, dict[str, np.ndarray]]:
        with jax.enable_x64(True):
            return {mode: edge_norms(mode) for mode in ("P", "D", "none")}

    return lab.once("plstm norms", measured)


def p_mode_keeps(lab: Laboratory) -> Outcome:
    """How far the L1 norm of P-mode is from one, on any anti-diagonal of 64, 3 seeds of random columns."""
    del lab
    with jax.enable_x64(True):
        per_seed = [float(np.abs(edge_norms("P", seed=seed)["l1"] - 1).max()) for seed in SEEDS]
    return Outcome(max(per_seed), per_seed=per_seed)


def d_mode_keeps(lab: Laboratory) -> Outcome:
    """The largest state of D-mode, and its L1 norm, which grows linearly."""
    found = norms(lab)["D"]
    return Outcome(float(found["largest"].max()), details={f"l1_{d}": float(found["l1"][d - 1]) for d in (16, 32, 63)})


def d_mode_grows_linearly(lab: Laboratory) -> Outcome:
    """How far the L1 norm of D-mode is from (d + 1) / 2 at step d, over 64 steps: 8.5 at step 16, 32 at step 63."""
    found = norms(lab)["D"]["l1"]
    error = np.abs(found - (np.arange(1, 65) + 1) / 2).max()
    return Outcome(float(error), details={f"l1_{d}": float(found[d - 1]) for d in (16, 63)})


def unstabilised_explodes(lab: Laboratory) -> Outcome:
    """The L1 norm with all four transitions one at step 63, beside P-mode's."""
    found = norms(lab)
    if lab.plots.is_dir():
        from paperlab.papers.plstm import pictures

        pictures.save(pictures.growth({mode: row["l1"] for mode, row in found.items()}), lab.plots / "growth.png")
    none = found["none"]["l1"]
    return Outcome(float(none[62]), float(found["P"]["l1"][62]), details={"at_16": float(none[15])})


def gradient_bound(lab: Laboratory) -> Outcome:
    """A cotangent of sup-norm one on the last anti-diagonal's edges of P-mode: the largest on any earlier edge, 3 seeds.

    Cotangents of edges are gradients with respect to what is written to them.
    """
    del lab
    with jax.enable_x64(True):
        per_seed = [_largest_cotangent("P", seed) for seed in SEEDS]
        return Outcome(max(per_seed), _largest_cotangent("none", 0), per_seed)


def _largest_cotangent(mode: str, seed: int, side: int = 64) -> float:
    rl, ru, dl, du = (jnp.asarray(t)[..., None, None] for t in _transitions(mode, side, seed))
    ones = jnp.ones((side, side, 1, 1))
    signs = np.random.default_rng((seed, 1)).choice([-1.0, 1.0], size=(2, side, side))
    last = np.add.outer(np.arange(side), np.arange(side)) == side - 1
    marks = [jnp.asarray(np.where(last, s, 0))[..., None, None, None] for s in signs]

    def reading(right: Array, down: Array) -> Array:
        gates = Gates(right[..., None], down[..., None], rl, ru, dl, du, *marks)
        return grid_memory(ones, ones, ones, gates, scale=1.0, impl="wavefront", chunk=8)[0].sum()

    found = jax.jit(jax.grad(reading, (0, 1)), compiler_options=QUICK)(ones, ones)
    return max(float(jnp.abs(g).max()) for g in found)
