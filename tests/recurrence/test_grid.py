"""Recurrences on grids: node by node, by diagonals of blocks and merged are one function; closed forms; known answers."""

from functools import partial
from math import comb

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paperlab.recurrence import dag, grid
from paperlab.recurrence.grid import Edges, Gates
from tests.golden.folder import FOLDER, needs_known_answers
from tests.recurrence.laws import QUICK
from tests.recurrence.test_structure import loops

ROOT = FOLDER / "plstm"
grid_memory = jax.jit(grid.grid_memory, static_argnames=("impl", "chunk", "scale"), compiler_options=QUICK)
gating = jax.jit(grid.gating, compiler_options=QUICK)
attend = jax.jit(grid.attend, static_argnames="scale", compiler_options=QUICK)
KNOWN = needs_known_answers("plstm")
J = {"JT": 2, "JO": 2, "JQ": 1, "JK": 2, "JV": 1}
MISSING = {"all": (), "L": ("dl",), "R": ("ru",), "row": ("ru", "dl", "du", "source_d", "mark_u")}


def drawn(X, Y, missing="all", J=J, lead=(2,), seed=0):
    """(q, k, v, gates, direct, entering), transitions small enough to keep the sums small."""
    rng = np.random.default_rng(seed)
    T = (X, Y, J["JT"], J["JT"])
    source, mark = (X, Y, J["JT"], J["JK"], J["JV"]), (X, Y, J["JO"], J["JQ"], J["JT"])
    shapes = {
        "source_r": source,
        "source_d": source,
        "rl": T,
        "ru": T,
        "dl": T,
        "du": T,
        "mark_l": mark,
        "mark_u": mark,
    }
    gates = {
        name: None if name in MISSING[missing] else jnp.asarray(0.6 * rng.normal(size=(*lead, *shape)))
        for name, shape in shapes.items()
    }
    q, k = (jnp.asarray(rng.normal(size=(*lead, X, Y, 3, J[j]))) for j in ("JQ", "JK"))
    v = jnp.asarray(rng.normal(size=(*lead, X, Y, 2, J["JV"])))
    direct = jnp.asarray(rng.normal(size=(*lead, X, Y, J["JO"], J["JQ"], J["JK"], J["JV"])))
    entering = Edges(*(jnp.asarray(rng.normal(size=(*lead, n, 3, 2, J["JT"]))) for n in (Y, X)))
    return q, k, v, Gates(**gates), direct, entering


@partial(jax.jit, static_argnames=("impl", "chunk"), compiler_options=QUICK)
def everything(arguments, impl, chunk=8):
    """Outputs, states that leave, and gradients of a random linear function of all of them."""

    def value(arguments):
        q, k, v, gates, direct, entering = arguments
        found = grid.grid_memory(q, k, v, gates, direct, entering=entering, impl=impl, chunk=chunk)
        return sum((x * jnp.cos(jnp.arange(x.size).reshape(x.shape))).sum() for x in jax.tree.leaves(found)), found

    gradients, found = jax.grad(value, has_aux=True)(arguments)
    return found, gradients


def assert_close(got, want, tolerance=1e-11):
    def compare(got, want):
        np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * max(1, float(np.abs(want).max())))

    jax.tree.map(compare, got, want)


SIZES = [((8, 8), "all"), ((6, 4), "L"), ((4, 6), "R"), ((7, 3), "all"), ((1, 5), "L")]


@pytest.mark.parametrize(("size", "missing"), SIZES, ids=lambda x: str(x))
def test_three_orders_of_evaluation_are_one_function(size, missing):
    with jax.enable_x64(True):
        arguments = drawn(*size, missing)
        want = everything(arguments, "nodes")
        assert jax.tree.leaves(want)[0].dtype == jnp.float64
        assert_close(everything(arguments, "hierarchical"), want)
        for chunk in (1, 4) if size == (8, 8) else (2,):
            assert_close(everything(arguments, "wavefront", chunk), want)


@pytest.mark.parametrize("T", [1, 7, 32])
def test_a_sequence_is_a_grid_of_one_row(T):
    """And equals the recurrence written out: the mark reads the state before the own input."""
    with jax.enable_x64(True):
        q, k, v, gates, direct, entering = drawn(T, 1, "row", lead=(1,))
        want, state = [], np.asarray(entering.vertical[0, 0])
        arrays = [np.asarray(x)[0, :, 0] for x in (q, k, v, gates.source_r, gates.rl, gates.mark_l, direct)]
        for Q, K, V, S, A, M, D in zip(*arrays, strict=True):
            read = np.einsum("dq,oqi,dvi->vo", Q, M, state) + np.einsum("dq,oqkl,dk,vl->vo", Q, D, K, V)
            state = np.einsum("ij,dvj->dvi", A, state) + np.einsum("ikl,dk,vl->dvi", S, K, V)
            want.append(read * 3**-0.5)
        for impl in ("nodes", "wavefront", "hierarchical"):
            out, leaving = grid_memory(q, k, v, gates, direct, entering=entering, impl=impl, chunk=4)
            assert_close(out[0, :, 0], np.stack(want))
            assert_close(leaving.vertical[0, 0], state)


def test_split_in_both_directions_with_carried_states():
    q, k, v, gates, direct, entering = drawn(6, 4)
    run = partial(grid_memory, impl="wavefront", chunk=2)
    whole, leaving = run(q, k, v, gates, direct, entering=entering)

    def part(x, y):
        def cut(tree, axis):
            return jax.tree.map(lambda a: a[(slice(None), x, y)] if axis is None else a[:, axis], tree)

        return [cut(tree, None) for tree in (q, k, v, gates, direct)]

    left, right, top, bottom = slice(0, 2), slice(2, 6), slice(0, 2), slice(2, 4)
    a, from_a = run(*part(left, top), entering=Edges(entering.vertical[:, top], entering.horizontal[:, left]))
    b, from_b = run(*part(right, top), entering=Edges(from_a.vertical, entering.horizontal[:, right]))
    c, from_c = run(*part(left, bottom), entering=Edges(entering.vertical[:, bottom], from_a.horizontal))
    d, from_d = run(*part(right, bottom), entering=Edges(from_c.vertical, from_b.horizontal))
    joined = jnp.concatenate([jnp.concatenate([a, b], 1), jnp.concatenate([c, d], 1)], 2)
    assert_close(joined, whole, 1e-5)
    assert_close(jnp.concatenate([from_b.vertical, from_d.vertical], 1), leaving.vertical, 1e-5)
    assert_close(jnp.concatenate([from_c.horizontal, from_d.horizontal], 1), leaving.horizontal, 1e-5)


def test_exchanging_x_and_y_exchanges_right_and_down():
    q, k, v, gates, direct, _ = drawn(5, 3)
    g = jax.tree.map(lambda x: x.swapaxes(1, 2), gates)
    turned = Gates(g.source_d, g.source_r, g.du, g.dl, g.ru, g.rl, g.mark_u, g.mark_l)
    want, leaving = grid_memory(q, k, v, gates, direct)
    got, left = grid_memory(*(x.swapaxes(1, 2) for x in (q, k, v)), turned, direct.swapaxes(1, 2))
    assert_close(got.swapaxes(1, 2), want, 1e-5)
    assert_close((left.horizontal, left.vertical), (leaving.vertical, leaving.horizontal), 1e-5)


def test_no_node_sees_what_is_not_to_its_upper_left():
    *_, gates, _, _ = drawn(4, 3)
    G = np.asarray(gating(gates))
    x, y, x_from, y_from = np.indices((4, 3, 4, 3))
    before = (x_from <= x) & (y_from <= y) & ((x_from < x) | (y_from < y))
    assert not G[:, ~before].any()
    assert (np.abs(G[:, before]).sum((0, 2, 3, 4, 5)) > 0).all()


def test_attention_with_g_is_the_recurrence():
    q, k, v, gates, direct, _ = drawn(4, 6)
    out, _ = grid_memory(q, k, v, gates, direct, impl="nodes")
    assert_close(attend(q, k, v, gating(gates, direct)), out, 1e-5)


def test_gates_that_rows_share_are_not_repeated():
    """Gates without the batch axis: one G serves all."""
    q, k, v, *_ = drawn(4, 4)
    *_, gates, direct, _ = drawn(4, 4, lead=(1,))
    want, _ = grid_memory(q, k, v, *jax.tree.map(lambda x: x.repeat(2, 0), (gates, direct)))
    for impl in ("nodes", "wavefront", "hierarchical"):
        got, _ = grid_memory(q, k, v, *jax.tree.map(lambda x: x[0], (gates, direct)), impl=impl, chunk=2)
        assert_close(got, want, 1e-5)


def test_dependent_steps():
    q, k, v, gates, direct, _ = drawn(16, 16, J=dict.fromkeys(J, 1))

    def found(impl):
        return list(loops(jax.make_jaxpr(partial(grid.grid_memory, impl=impl, chunk=4))(q, k, v, gates, direct).jaxpr))

    assert found("nodes") == [16, 16]
    assert found("wavefront") == [4 + 4 - 1]
    assert found("hierarchical") == []


ONES = {"JT": 1, "JO": 1, "JQ": 1, "JK": 1, "JV": 1}


def plain(X, Y, **values):
    """Gates that are the same at every node."""
    full = {
        name: None if value is None else jnp.full((X, Y, *(1,) * (2 if len(name) == 2 else 3)), float(value))
        for name, value in values.items()
    }
    return Gates(**full)


@pytest.mark.parametrize("alpha", [0.3, 0.5])
@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_p_mode_is_a_binomial_beam(alpha, gamma):
    """binom(x + y, x) alpha^x (1 - alpha)^y gamma^(x + y - 1); at gamma = 1 every anti-diagonal sums to one."""
    with jax.enable_x64(True):
        gates = plain(
            16, 16, source_r=alpha, source_d=1 - alpha, rl=gamma * alpha, ru=gamma * alpha, dl=gamma * (1 - alpha),
            du=gamma * (1 - alpha), mark_l=1, mark_u=1,
        )  # fmt: skip
        field = np.asarray(gating(gates))[:, :, 0, 0, 0, 0, 0, 0]
        x, y = np.indices((16, 16))
        want = np.vectorize(lambda x, y: comb(x + y, x))(x, y) * alpha**x * (1 - alpha) ** y * gamma ** (x + y - 1.0)
        want[0, 0] = 0
        np.testing.assert_allclose(field, want, atol=1e-12)
        if gamma == 1:
            np.testing.assert_allclose([np.trace(field[::-1], d - 15) for d in range(1, 16)], 1, atol=1e-12)


def test_d_mode_reaches_everything_once():
    gates = plain(16, 16, source_r=1, source_d=1, rl=1, ru=1, dl=None, du=1, mark_l=1, mark_u=1)
    field = np.asarray(gating(gates))[:, :, 0, 0, 0, 0, 0, 0]
    assert field[0, 0] == 0
    np.testing.assert_array_equal(field.ravel()[1:], 1)


def test_stabilisation_is_necessary():
    """One source: P-mode columns that sum to one keep the sum of states, four ones let it explode, D-mode grows linearly."""
    N = 24
    rng = np.random.default_rng(0)
    columns = jnp.asarray(rng.uniform(size=(2, N, N, 1, 1)))
    unit = jnp.zeros((N, N, 1, 1, 1)).at[0, 0].set(0.5)
    ones, marks = jnp.ones((N, N, 1, 1)), jnp.ones((N, N, 1, 1, 1))
    modes = {
        "P": Gates(unit, unit, columns[0], columns[1], 1 - columns[0], 1 - columns[1], marks, marks),
        "D": Gates(unit, unit, ones, ones, None, ones, marks, marks),
        "none": Gates(unit, unit, ones, ones, ones, ones, marks, marks),
    }
    q = jnp.ones((N, N, 1, 1))
    sums = {}
    for mode, gates in modes.items():
        out, _ = grid_memory(q, jnp.zeros_like(q).at[0, 0].set(1), q, gates, scale=1.0, impl="wavefront", chunk=4)
        field = np.asarray(out[..., 0, 0])
        sums[mode] = [np.trace(field[::-1], d - N + 1) for d in range(1, N)]
        if mode == "D":
            assert field.max() <= 1
    np.testing.assert_allclose(sums["P"], 1, rtol=1e-4)
    assert sums["none"][-1] > 1e6
    assert sums["D"][15] == pytest.approx(8.5, abs=1)


def test_the_graph_of_a_grid_gives_the_same():
    """Every node with an edge in and an edge out, the arcs being the four turns."""
    with jax.enable_x64(True):
        X, Y = 3, 4
        q, k, v, gates, _, _ = drawn(X, Y, J=ONES, lead=())
        want, _ = grid_memory(q, k, v, gates, scale=1.0)
        nodes = np.arange((X + 1) * (Y + 1)).reshape(X + 1, Y + 1)
        right = [(nodes[x, y], nodes[x + 1, y]) for x in range(X) for y in range(Y)]
        down = [(nodes[x, y], nodes[x, y + 1]) for x in range(X) for y in range(Y)]
        edges = np.array(right + down)
        arcs = dag.arcs_of(edges)
        turn = {(0, 0): gates.rl, (1, 0): gates.ru, (0, 1): gates.dl, (1, 1): gates.du}
        place = {int(nodes[x, y]): (x, y) for x in range(X) for y in range(Y)}
        half = X * Y
        T = jnp.stack([turn[(int(a >= half), int(b >= half))][place[int(edges[b, 0])]][0, 0] for a, b in arcs])
        kv = jnp.einsum("xydk,xyvl->xydv", k, v).reshape(half, 3, 2)
        source = [jnp.einsum("n,ndv->ndv", s.reshape(half), kv) for s in (gates.source_r, gates.source_d)]
        C = dag.dag_scan(T, jnp.concatenate(source), dag.schedule(len(edges), arcs), arcs)
        out = np.zeros((X, Y, 2))
        for e, (_, head) in enumerate(edges):
            if int(head) in place:
                x, y = place[int(head)]
                mark = (gates.mark_l if e < half else gates.mark_u)[x, y, 0, 0, 0]
                out[x, y] += np.asarray(mark * q[x, y, :, 0] @ C[e])
        np.testing.assert_allclose(out, want[..., 0], atol=1e-12)


def test_what_is_asked_wrongly_is_named():
    q, k, v, gates, direct, entering = drawn(4, 3)
    for call, words in [
        (partial(grid_memory, q, k, v, gates, impl="fast"), "'fast'"),
        (partial(grid_memory, q[:, :3], k, v, gates), "gates"),
        (partial(grid_memory, q, k, v, gates._replace(rl=gates.rl[:, :2])), "gates.rl"),
        (partial(grid_memory, q, k, v, gates, direct[..., :0]), "direct"),
        (partial(grid_memory, q, k, v, gates, entering=Edges(entering.horizontal, entering.vertical)), "entering"),
        (partial(grid_memory, q[:, :0], k, v, gates), "empty"),
        (partial(grid_memory, q, k, v, gates, chunk=0), "chunk=0"),
    ]:
        with pytest.raises(ValueError, match=words):
            call()


def known(name):
    with np.load(ROOT / f"{name}.npz", allow_pickle=False) as file:
        return {key: jnp.asarray(file[key]) for key in file}


def gates_of(a, number=None):
    names = ("S0_r", "S0_d", "T0_rl", "T0_ru", "T0_dl", "T0_du", "M0_l", "M0_u")
    return Gates(*(None if a.get(n) is None else a[n] if number is None else a[n][:, number] for n in names))


@KNOWN
@pytest.mark.parametrize("name", ["P_8x8", "P_rect_8x4", "D_chirL_8x8", "D_chirR_8x8", "statetrack_4x4"])
@pytest.mark.parametrize("impl", ["wavefront", "hierarchical"])
def test_known_grids(name, impl):
    with jax.enable_x64(True):
        a = known(f"core2d_{name}")
        names = [n for n in a if f"grad_{n}" in a]

        def loss(arrays):
            arrays = {**a, **arrays}
            inputs = (arrays["Q"], arrays["K"], arrays["V"], gates_of(arrays), arrays["D0"])
            out, _ = grid.grid_memory(*inputs, impl=impl, chunk=2)
            return (a["w"] * out).sum(), out

        gradients, out = jax.jit(jax.grad(loss, has_aux=True), compiler_options=QUICK)({n: a[n] for n in names})
        assert_close(out, a["out"])
        assert_close(gradients, {n: a[f"grad_{n}"] for n in names})
        entering = Edges(a["C_left"], a["C_top"])
        run = partial(grid_memory, impl=impl, chunk=2)
        out, leaving = run(a["Q"], a["K"], a["V"], gates_of(a), a["D0"], entering=entering)
        assert_close((out, leaving), (a["out_from_C"], Edges(a["C_right_last"], a["C_bottom_last"])))
        if "G_nodirect" in a:
            assert_close(gating(gates_of(a)), jnp.moveaxis(a["G_nodirect"], (1, 2, 3, 4), (1, 3, 2, 4)))


@KNOWN
@pytest.mark.parametrize("name", ["scalar_T16", "statetrack_T8"])
def test_known_sequences(name):
    with jax.enable_x64(True):
        a = known(f"core1d_{name}")

        def row(x):
            return x[:, :, None]

        gates = Gates(row(a["S0"]), None, row(a["T0"]), None, None, None, row(a["M0"]), None)
        run = partial(grid_memory, *(row(a[n]) for n in "QKV"), gates, row(a["D0"]), chunk=4)
        nothing = jnp.zeros_like(a["C_initial"])[:, None]
        top = jnp.zeros((*a["Q"].shape[:2], *a["C_initial"].shape[1:]))
        for impl in ("wavefront", "hierarchical"):
            out, leaving = run(impl=impl, entering=Edges(nothing, top))
            assert_close((out[:, :, 0], leaving.vertical[:, 0]), (a["out"], a["C_last"]))
            out, leaving = run(impl=impl, entering=Edges(a["C_initial"][:, None], top))
            assert_close((out[:, :, 0], leaving.vertical[:, 0]), (a["out_from_C_initial"], a["C_last_from_C_initial"]))
        G = gating(gates)[:, :, 0, :, 0]
        assert_close(G, a["G_nodirect"][:, 0])


@KNOWN
@pytest.mark.parametrize("name", ["P", "D_chirL"])
def test_known_sum_of_four_directions(name):
    with jax.enable_x64(True):
        a = known(f"fused4_{name}_8x8")
        G = jax.jit(grid.four_directions, compiler_options=QUICK)([gates_of(a, i) for i in range(4)], a["D0"])
        assert_close(G, jnp.moveaxis(a["G"], (1, 2, 3, 4), (1, 3, 2, 4)))
        assert_close(attend(a["Q"], a["K"], a["V"], G), a["out"])
