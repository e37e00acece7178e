"""pLSTM's recurrence along a sequence: its definition, its gating tensor, its relatives, and what each form costs in steps."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas import gla
from paperlab.recurrence import grid, kernels, line
from paperlab.recurrence.line import Gates
from tests.recurrence.laws import QUICK
from tests.recurrence.rows_line import DK, DV, PLAIN, STATES, draw, run
from tests.recurrence.test_structure import loops

T = 13
line_memory = jax.jit(line.line_memory, static_argnames=("impl", "chunk", "scale"), compiler_options=QUICK)


def arguments(J=STATES, T=T, seed=0, dtype=jnp.float64):
    """(q, k, v, gates, direct, entering)."""
    a = draw(T, seed, dtype, J=J)
    return a["q"], a["k"], a["v"], Gates(a["source"], a["transition"], a["mark"]), a["direct"], a["entering"]


def by_hand(q, k, v, gates, direct, C, scale):
    """Step after step, in NumPy."""
    S, A, M = map(np.asarray, gates)
    q, k, v, D, C = map(np.asarray, (q, k, v, direct, C))
    out = []
    for t in range(q.shape[1]):
        read = np.einsum("boqi,bdq,bdvi->bvo", M[:, t], q[:, t], C)
        own = np.einsum("boqkl,bdq,bdk,bvl->bvo", D[:, t], q[:, t], k[:, t], v[:, t])
        out.append(scale * (read + own))
        C = np.einsum("bij,bdvj->bdvi", A[:, t], C) + np.einsum("bikl,bdk,bvl->bdvi", S[:, t], k[:, t], v[:, t])
    return np.stack(out, 1), C


@pytest.mark.parametrize("impl", ["sequential", "associative", "chunked", "hierarchical"])
def test_equals_the_definition(impl):
    with jax.enable_x64(True):
        q, k, v, gates, direct, entering = arguments()
        want = by_hand(q, k, v, gates, direct, entering, 3**-0.5)
        got = line_memory(q, k, v, gates, direct, entering=entering, impl=impl, chunk=4)
        for x, y in zip(got, want, strict=True):
            np.testing.assert_allclose(x, y, atol=1e-11)


def test_is_the_grid_with_one_row():
    with jax.enable_x64(True):
        q, k, v, g, direct, _ = arguments()
        row = lambda x, own: jnp.expand_dims(x, x.ndim - own)  # noqa: E731
        gates = grid.Gates(row(g.source, 3), None, row(g.transition, 2), None, None, None, row(g.mark, 3), None)
        want, edges = grid.grid_memory(row(q, 2), row(k, 2), row(v, 2), gates, row(direct, 4), impl="nodes")
        got, last = line_memory(q, k, v, g, direct)
        np.testing.assert_allclose(got, want[:, :, 0], atol=1e-11)
        np.testing.assert_allclose(last, edges.vertical[:, 0], atol=1e-11)


def test_steps_one_by_one():
    with jax.enable_x64(True):
        q, k, v, gates, direct, C = arguments()
        want, last = line_memory(q, k, v, gates, direct, entering=C)
        for t in range(T):
            now = Gates(*(g[:, t] for g in gates))
            out, C = line.line_step(q[:, t], k[:, t], v[:, t], now, direct[:, t], C)
            np.testing.assert_allclose(out, want[:, t], atol=1e-11)
        np.testing.assert_allclose(C, last, atol=1e-11)


def test_attention_with_the_gating_tensor_is_the_recurrence():
    with jax.enable_x64(True):
        q, k, v, gates, direct, _ = arguments()
        G = line.line_gating(gates, direct)
        assert G.shape == (2, T, T, 2, 2, 2, 2)
        above = np.triu(np.ones((T, T), bool), 1)
        assert not np.asarray(G)[:, above].any()
        assert np.asarray(G)[:, ~above].all()
        out = jnp.einsum("btsoqkl,btdq,bsdk,bsvl->btvo", G, q, k, v) * 3**-0.5
        np.testing.assert_allclose(out, line_memory(q, k, v, gates, direct)[0], atol=1e-11)
        np.testing.assert_allclose(line.line_gating(Gates(*(g[:, :1] for g in gates))), 0)


def test_a_level_is_twice_the_one_before():
    """T over a block is the product of its steps, the later on the left."""
    with jax.enable_x64(True):
        gates = arguments(T=8)[3]
        for i, level in enumerate(line.levels(gates)):
            size = 2**i
            assert level.through.shape[1] == 8 // size
            for b in range(8 // size):
                want = np.eye(3)
                for t in range(b * size, (b + 1) * size):
                    want = np.asarray(gates.transition[0, t]) @ want
                np.testing.assert_allclose(level.through[0, b], want, atol=1e-12)


def test_gated_linear_attention_is_a_case_of_it():
    """T = f, S = i, M = o f and D = o i: the mark reads before the own input, gated linear attention after it."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, T, 3, 4)), jnp.float32) for _ in range(3))
    f, i, o = (jnp.asarray(rng.uniform(0.2, 1, size=(2, T, 3)), jnp.float32) for _ in range(3))
    want, state = gla(q, i[..., None] * k, v, jnp.log(f)[..., None], output_final_state=True, impl="recurrent")
    heads = lambda x, J: jnp.moveaxis(x, 2, 1).reshape(2, 3, T, *x.shape[3:], *(1,) * J)  # noqa: E731
    gates = Gates(heads(i, 3), heads(f, 2), heads(o * f, 3))
    out, last = line_memory(heads(q, 1), heads(k, 1), heads(v, 1), gates, heads(o * i, 4))
    np.testing.assert_allclose(jnp.moveaxis(out[..., 0], 1, 2), o[..., None] * want, atol=2e-5)
    np.testing.assert_allclose(last[..., 0], state, atol=2e-5)


def test_gradients_by_differences():
    with jax.enable_x64(True):
        q, k, v, gates, direct, entering = arguments(T=5)

        def value(arrays):
            gates, v, entering = arrays
            out, last = line.line_memory(q, k, v, gates, direct, entering=entering, impl="chunked", chunk=2)
            return jnp.sin(out).sum() + jnp.cos(last).sum()

        value_and_gradient = jax.jit(jax.value_and_grad(value), compiler_options=QUICK)

        arrays = (gates, v, entering)
        turn = jax.tree.map(lambda x: jnp.asarray(np.random.default_rng(1).normal(size=x.shape)), arrays)
        ahead, back = (
            value_and_gradient(jax.tree.map(lambda x, d, h=h: x + h * d, arrays, turn))[0] for h in (1e-5, -1e-5)
        )
        slopes = jax.tree.map(lambda g, d: (g * d).sum(), value_and_gradient(arrays)[1], turn)
        np.testing.assert_allclose(sum(jax.tree.leaves(slopes)), (ahead - back) / 2e-5, rtol=1e-6)


@pytest.mark.parametrize(
    ("impl", "steps"), [("sequential", [64]), ("associative", []), ("chunked", [8]), ("hierarchical", [])]
)
def test_dependent_steps(impl, steps):
    args = draw(64, 0, jnp.float32, J=STATES)
    gates = Gates(args["source"], args["transition"], args["mark"])
    program = jax.make_jaxpr(partial(line.line_memory, impl=impl, chunk=8))(args["q"], args["k"], args["v"], gates)
    assert list(loops(program.jaxpr)) == steps


def test_states_do_not_pile_up_in_the_gradient():
    """Blocks keep a state each, not one a step: what autodiff of the definition would keep."""

    def kept(impl):
        args = draw(256, 0, jnp.float32, J=PLAIN)
        _, vjp = jax.vjp(lambda args: run(args, impl=impl), args)
        return sum(x.size for x in jax.tree.leaves(vjp) if hasattr(x, "size"))

    assert kept("sequential") - kept("chunked") > 0.8 * 2 * 256 * DK * DV


def test_by_the_kernel(monkeypatch):
    monkeypatch.setattr(kernels, "IMPL", "interpret")
    q, k, v, gates, direct, entering = arguments(PLAIN, dtype=jnp.float32)
    ids = jnp.asarray([[0] * 4 + [1] * 9, [5] * 13])
    want = line_memory(q, k, v, gates, direct, entering=entering, segment_ids=ids, impl="sequential")
    got = line.line_memory(q, k, v, gates, direct, entering=entering, segment_ids=ids, impl="pallas")
    for x, y in zip(got, want, strict=True):
        np.testing.assert_allclose(x, y, atol=2e-5)
    with pytest.raises(ValueError, match="JT = 3"):
        line.line_memory(*arguments(dtype=jnp.float32)[:4], impl="pallas")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"impl": "fast"}, "impl='fast'"),
        ({"chunk": 12}, "chunk=12"),
        ({"k": jnp.zeros((2, T, 4, 2))}, "k must end with"),
        ({"v": jnp.zeros((2, T, 2, 2), jnp.int32)}, "v must be real"),
        ({"entering": jnp.zeros((2, 3, 3, 3))}, "entering must end with"),
        ({"segment_ids": jnp.zeros((2, T - 1), int)}, "segment_ids must end with"),
    ],
)
def test_what_does_not_fit_is_said(change, message):
    q, k, v, gates, direct, _ = arguments(dtype=jnp.float32)
    with pytest.raises(ValueError, match=message):
        line.line_memory(**({"q": q, "k": k, "v": v, "gates": gates, "direct": direct} | change))
