"""Claim 5: the recurrence on graphs, its orders of evaluation, and what keeps its states bounded.

Everything in float64 on random graphs of 9 to 40 nodes. The node loop and the sum over paths are written out in numpy, edge by edge
and product by product; nothing of the library is in them but the list of arcs.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from paperlab.evidence import Claim, Laboratory, Outcome, Threshold
from paperlab.papers.plstm.graph import Wiring, graph_memory, p_mode
from paperlab.recurrence import dag

SIZES = (9, 15, 25, 40)
SEEDS = (0, 1, 2)
HEADS, KEY, VALUE = 2, 3, 2
ORDERS = ("levels", "hierarchical")
NAMES = ("q", "k", "v", "source", "transition", "mark", "direct")


def random_graph(nodes: int, seed: int) -> np.ndarray:
    """Edges [E, 2] of a random DAG with about two edges a node, in no order."""
    rng = np.random.default_rng((seed, nodes))
    upper = np.argwhere(np.triu(rng.random((nodes, nodes)) < 4 / nodes, 1))
    edges = dag.oriented(upper if len(upper) else [(0, 1)])
    return edges[rng.permutation(len(edges))]


def random_inputs(nodes: int, edges: np.ndarray, arcs: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Arguments of `graph_memory` but for the wiring; transitions are those of no mode."""
    rng = np.random.default_rng((seed, nodes, 1))
    shapes: dict[str, tuple[int, ...]] = {
        "q": (nodes, HEADS, KEY),
        "k": (nodes, HEADS, KEY),
        "v": (nodes, HEADS, VALUE),
    }
    shapes |= {"source": (len(edges), HEADS), "transition": (len(arcs), HEADS), "mark": (len(edges), HEADS)}
    return {name: rng.normal(size=shape) for name, shape in (shapes | {"direct": (nodes, HEADS)}).items()}


def wired(edges: np.ndarray, arcs: np.ndarray) -> Wiring:
    """One graph for `graph_memory`."""
    places = jnp.zeros(len(edges), jnp.int32)
    tails, heads = jnp.asarray(edges).T
    return Wiring(tails, heads, places, places, jnp.asarray(arcs), dag.schedule(len(edges), arcs))


def node_loop(x: dict[str, np.ndarray], edges: np.ndarray, arcs: np.ndarray) -> np.ndarray:
    """Nodes in their order: each reads what has come in, then sends on what came in and what it writes."""
    N = len(x["q"])
    C = np.zeros((len(edges), HEADS, KEY, VALUE))
    h = x["direct"][..., None] * (x["q"] * x["k"]).sum(-1, keepdims=True) * x["v"]
    for n in range(N):
        for e in np.flatnonzero(edges[:, 1] == n):
            h[n] += x["mark"][e][:, None] * np.einsum("hk,hkv->hv", x["q"][n], C[e])
        for e in np.flatnonzero(edges[:, 0] == n):
            C[e] = x["source"][e][:, None, None] * np.einsum("hk,hv->hkv", x["k"][n], x["v"][n])
            for arc in np.flatnonzero(arcs[:, 1] == e):
                C[e] += x["transition"][arc][:, None, None] * C[arcs[arc, 0]]
    return h


def path_sum(x: dict[str, np.ndarray], edges: np.ndarray, arcs: np.ndarray) -> np.ndarray:
    """h_n = sum over nodes m and paths from m to n of (S * product of T * M) (q_n k_m) v_m, path by path."""
    after: dict[int, list[tuple[int, int]]] = {}
    for number, (earlier, later) in enumerate(arcs):
        after.setdefault(int(earlier), []).append((int(later), number))
    h = x["direct"][..., None] * (x["q"] * x["k"]).sum(-1, keepdims=True) * x["v"]

    def walk(m: int, e: int, weight: np.ndarray) -> None:
        n = edges[e, 1]
        h[n] += (x["mark"][e] * weight * (x["q"][n] * x["k"][m]).sum(-1))[:, None] * x["v"][m]
        for later, number in after.get(e, []):
            walk(m, later, weight * x["transition"][number])

    for e, (tail, _) in enumerate(edges):
        walk(int(tail), e, x["source"][e])
    return h


def number_of_paths(count: int, arcs: np.ndarray) -> np.ndarray:
    """[e', e]: how many paths lead from edge e' to edge e."""
    step = np.zeros((count, count), np.int64)
    np.add.at(step, (arcs[:, 0], arcs[:, 1]), 1)
    total, power = np.eye(count, dtype=np.int64), step
    while power.any():
        total, power = total + power, power @ step
    return total


def _graphs() -> list[tuple[int, int, np.ndarray, np.ndarray]]:
    """(nodes, seed, edges, all arcs)."""
    made = [(nodes, seed, random_graph(nodes, seed)) for nodes in SIZES for seed in SEEDS]
    return [(nodes, seed, edges, dag.arcs_of(edges)) for nodes, seed, edges in made]


class Sample(NamedTuple):
    """Random graphs, and all of them side by side as one: parts (nodes, seed, edges, arcs); where each begins."""

    parts: list[tuple[int, int, np.ndarray, np.ndarray]]
    edges: np.ndarray
    arcs: np.ndarray
    at_node: np.ndarray
    at_edge: np.ndarray

    @classmethod
    def draw(cls, *, pruned: bool = False) -> "Sample":
        """Graphs of every size and seed, with all arcs or those of a multitree."""
        parts = []
        for nodes in SIZES:
            for seed in SEEDS:
                edges = random_graph(nodes, seed)
                arcs = dag.arcs_of(edges)
                parts.append((nodes, seed, edges, dag.prune_to_multitree(edges, arcs) if pruned else arcs))
        _, edges, arcs = dag.union([(nodes, edges, arcs) for nodes, _, edges, arcs in parts])
        at_node = np.cumsum([0, *(part[0] for part in parts)])
        at_edge = np.cumsum([0, *(len(part[2]) for part in parts)])
        return cls(parts, edges, arcs, at_node, at_edge)

    def states(self, T: Any, b: Any) -> list[np.ndarray]:
        """The states of every graph for transitions T [L] and sources b [E] of all."""
        C = dag.dag_scan(
            jnp.asarray(T), jnp.asarray(b), dag.schedule(len(self.edges), self.arcs), jnp.asarray(self.arcs)
        )
        return np.split(np.asarray(C), self.at_edge[1:-1])


def one_function(lab: Laboratory) -> Outcome:
    """Largest difference between the orders of evaluation, relative to the largest output of a graph where that is above 1.

    The graphs are evaluated side by side as one, and each alone by the loop over its nodes (and, of 9 nodes, path by path).
    """
    del lab
    sample, found = Sample.draw(), []
    inputs = [random_inputs(nodes, edges, arcs, seed) for nodes, seed, edges, arcs in sample.parts]
    with jax.enable_x64(True):
        together = {name: jnp.concatenate([x[name] for x in inputs]) for name in NAMES}
        plan, got = wired(sample.edges, sample.arcs), {}
        for impl in (*ORDERS, "sequential"):
            out = jax.jit(partial(graph_memory, impl=impl))(**together, wiring=plan)
            got[impl] = np.split(np.asarray(out), sample.at_node[1:-1])
    for number, (nodes, seed, edges, arcs) in enumerate(sample.parts):
        want = node_loop(inputs[number], edges, arcs)
        others = {impl: outs[number] for impl, outs in got.items()}
        if nodes <= 9:
            others["paths"] = path_sum(inputs[number], edges, arcs)
        scale = max(1.0, float(np.abs(want).max()))
        errors = {name: float(np.abs(other - want).max()) / scale for name, other in others.items()}
        found.append({"nodes": nodes, "seed": seed, "edges": len(edges), "arcs": len(arcs), **errors})
    worst = max(value for row in found for name, value in row.items() if name in (*ORDERS, "sequential", "paths"))
    return Outcome(worst, per_seed=found)


def one_gradient(lab: Laboratory) -> Outcome:
    """Largest difference between gradients by levels or merged blocks and those edge by edge, relative likewise."""
    del lab
    sample = Sample.draw()
    inputs = [random_inputs(nodes, edges, arcs, seed) for nodes, seed, edges, arcs in sample.parts]
    scale = np.concatenate([np.full(part[0], 1 / part[0]) for part in sample.parts])
    with jax.enable_x64(True):
        together = {name: jnp.concatenate([x[name] for x in inputs]) for name in NAMES}
        together["transition"] = together["transition"] / 2
        plan = wired(sample.edges, sample.arcs)
        weight = np.random.default_rng(0).normal(size=together["v"].shape) * scale[:, None, None]

        def gradients(impl: str) -> Any:
            def value(x: dict[str, Any]) -> Any:
                return (graph_memory(**x, wiring=plan, impl=impl) * weight).sum()

            return jax.jit(jax.grad(value))(together)

        want = gradients("sequential")
        found = {impl: _relative(gradients(impl), want) for impl in ORDERS}
    return Outcome(max(max(errors.values()) for errors in found.values()), details=found)


def _relative(got: dict[str, Any], want: dict[str, Any]) -> dict[str, float]:
    return {n: float(jnp.abs(got[n] - want[n]).max() / jnp.maximum(1.0, jnp.abs(want[n]).max())) for n in want}


def multitree(lab: Laboratory) -> Outcome:
    """The most paths between any two edges after pruning; before it as the baseline."""
    del lab
    found: list[dict[str, Any]] = []
    for nodes, seed, edges, arcs in Sample.draw().parts:
        kept = dag.prune_to_multitree(edges, arcs)
        before, after = (int(number_of_paths(len(edges), some).max()) for some in (arcs, kept))
        found.append({"nodes": nodes, "seed": seed, "before": before, "after": after, "arcs": [len(arcs), len(kept)]})
    worst, baseline = (max(row[name] for row in found) for name in ("after", "before"))
    return Outcome(float(worst), float(baseline), found)


def d_mode_bound(lab: Laboratory) -> Outcome:
    """Largest |C_e| over the number of ancestors that wrote into it, each at most 1, for |T| <= 1 on multitrees.

    With odd seeds all T and S are 1, where the bound is met; the baseline is the same without pruning.
    """
    del lab

    def largest_share(pruned: bool) -> list[float]:
        sample, T, b = Sample.draw(pruned=pruned), [], []
        for nodes, seed, edges, arcs in sample.parts:
            rng = np.random.default_rng((seed, nodes, 2))
            T.append(np.ones(len(arcs)) if seed % 2 else rng.uniform(-1, 1, len(arcs)))
            b.append(np.ones(len(edges)) if seed % 2 else rng.uniform(-1, 1, len(edges)))
        states = sample.states(np.concatenate(T), np.concatenate(b))
        ancestors = [(number_of_paths(len(edges), arcs) > 0).sum(0) for _, _, edges, arcs in sample.parts]
        return [float((np.abs(C) / count).max()) for C, count in zip(states, ancestors, strict=True)]

    with jax.enable_x64(True):
        ours, theirs = largest_share(True), largest_share(False)
    return Outcome(max(ours), max(theirs), ours, {"baseline_per_seed": theirs})


def p_mode_bound(lab: Laboratory) -> Outcome:
    """L1 norm of all states over (edges of the longest path) x |S|_1, in the P-mode of the layer.

    The baseline are the same transitions, not normalised.
    """
    del lab
    sample = Sample.draw()
    rng = np.random.default_rng(3)
    t, b = 3 * rng.normal(size=(len(sample.arcs), 1)), rng.normal(size=(len(sample.edges), 1))

    def share(T: Any) -> list[float]:
        sources = np.split(np.abs(b), sample.at_edge[1:-1])
        longest = [dag.levels(len(edges), arcs).max() + 1 for _, _, edges, arcs in sample.parts]
        states = sample.states(T, b)
        return [float(np.abs(C).sum() / (n * s.sum())) for C, n, s in zip(states, longest, sources, strict=True)]

    with jax.enable_x64(True):
        ours = share(p_mode(jnp.asarray(t), jnp.asarray(sample.arcs), len(sample.edges)))
        theirs = share(t)
    return Outcome(max(ours), max(theirs), ours, {"baseline_per_seed": theirs})


_SOURCE = "section 4, equations 5 and 6; section 4.2; scale: random DAGs of 9, 15, 25 and 40 nodes, 3 seeds, float64"
CLAIMS = [
    Claim(
        "5.forms",
        "On a graph, level by level == blocks merged in log2 E steps == edge by edge == a loop over nodes == (9 nodes) the sum "
        "over all paths (largest relative difference)",
        _SOURCE,
        one_function,
        Threshold("<=", 1e-11),
    ),
    Claim(
        "5.gradients",
        "The gradients of the first two equal those of the edge-by-edge form (largest relative difference)",
        _SOURCE,
        one_gradient,
        Threshold("<=", 1e-11),
    ),
    Claim(
        "5.multitree",
        "Greedy pruning leaves at most one path between any two edges (most paths; baseline: before pruning)",
        _SOURCE,
        multitree,
        Threshold("<=", 1),
    ),
    Claim(
        "5.d_bound",
        "D-mode: with |T| <= 1 a state is bounded by the number of ancestors that write (largest share of the bound; baseline: "
        "without pruning)",
        _SOURCE,
        d_mode_bound,
        Threshold("<=", 1 + 1e-12),
    ),
    Claim(
        "5.p_bound",
        "P-mode: the L1 norm of all states is at most path length x |S|_1 (largest share of the bound; baseline: transitions "
        "that are not normalised)",
        _SOURCE,
        p_mode_bound,
        Threshold("<=", 1),
    ),
]
