"""ParaRNN's oracles on the cells of the house (float64): what Newton's method must do whatever the weights, plain loops beside it.

Those of the solvers themselves stand in tests/recurrence, those of the layer in tests/mixers, the kernels' in tests/kernels_pallas.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paperlab.layers.recurrent_cell import names, recipe
from paperlab.papers.pararnn import anatomy
from paperlab.recurrence import Solver, newton_solve
from paperlab.recurrence.block import block_scan
from paperlab.recurrence.jacobian import as_matrix, linearized
from paperlab.recurrence.newton_loop import adjoint
from paperlab.recurrence.newton_system import Reduction, System
from tests.recurrence.laws import QUICK

B, T, WIDTH, HEADS = 2, 11, 4, 2
CELLS = names()
jit = partial(jax.jit, compiler_options=QUICK)


@cache
def drawn(name, strength=1.0, length=T):
    """(cell, parameters, what the step reads [B, T, inputs, width], a state before)."""
    with jax.enable_x64(True):
        made = recipe(name, WIDTH, HEADS)
        draw = np.random.default_rng(0)
        params = jax.tree.map(lambda a: strength * draw.standard_normal(a.shape), made.init(jax.random.key(0)))
        x = draw.standard_normal((B, length, made.inputs, WIDTH))
        return made.cell, params, x, 0.5 * draw.standard_normal((B, *made.cell.state))


def by_loop(cell, params, x, h0):
    states = [h0]
    for t in range(x.shape[1]):
        states.append(np.asarray(cell.step(params, x[:, t], states[-1])))
    return np.stack(states[1:], 1)


def test_every_cell_is_looked_at():
    assert set(CELLS) >= {"gru", "lstm", "linear", "elman", "heads"}


@pytest.mark.parametrize("name", CELLS)
def test_as_many_iterations_as_steps_are_the_recurrence(name):
    with jax.enable_x64(True):
        cell, params, x, h0 = drawn(name)
        run = jit(
            lambda x, h0: newton_solve(cell, params, x, h0, axis=1, solver=Solver(iterations=T), impl="associative")
        )
        found = run(x, h0)
        np.testing.assert_allclose(found.states, by_loop(cell, params, x, h0), rtol=0, atol=1e-12)
        assert np.all(found.residual < 1e-12)


@pytest.mark.parametrize("strength", [1.0, 12.0])
@pytest.mark.parametrize("name", CELLS)
def test_iterate_k_is_exact_at_its_first_k_plus_one_positions(name, strength):
    with jax.enable_x64(True):
        cell, params, x, h0 = drawn(name, strength)
        exact = by_loop(cell, params, x, np.zeros_like(h0))
        states, residuals, _ = jax.vmap(lambda x: anatomy.course(cell, params, x, T))(x)
        for k in range(T + 1):
            np.testing.assert_allclose(states[:, k, : k + 1], exact[:, : k + 1], rtol=0, atol=1e-9)
        if strength > 1 and params:
            assert residuals[:, 2].max() > 1e-2


def test_a_chaotic_cell_explodes_on_its_way_and_arrives():
    with jax.enable_x64(True):
        made = recipe("elman", 6)
        draw = np.random.default_rng(2)
        params = {"w": 4 / np.sqrt(6) * draw.standard_normal((6, 6))}
        found = anatomy.course(made.cell, params, 0.5 * draw.standard_normal((48, 1, 6)), 48)
        worst = np.asarray(found.residuals.max(1))
        assert worst.max() > 1e6
        assert worst[3] > 0.1
        np.testing.assert_allclose(found.states[-1], found.exact, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", CELLS)
def test_the_jacobian_is_that_of_central_differences(name):
    with jax.enable_x64(True):
        cell, params, x, h0 = drawn(name)
        J = np.asarray(as_matrix(cell.structure, jnp.asarray(linearized(cell, params, x[:, 0], jnp.asarray(h0))[1])))
        size, tiny = int(np.prod(cell.state)), 1e-6
        for column in range(size):
            push = tiny * np.eye(size)[column].reshape(cell.state)
            change = cell.step(params, x[:, 0], h0 + push) - cell.step(params, x[:, 0], h0 - push)
            np.testing.assert_allclose(
                np.asarray(change).reshape(B, size) / (2 * tiny), J[..., column], rtol=0, atol=1e-7
            )


@pytest.mark.parametrize("name", CELLS)
def test_the_adjoint_is_the_reverse_loop(name):
    """l_t = J_{t+1}^T l_{t+1} + g_t with full matrices."""
    with jax.enable_x64(True):
        cell, params, x, h0 = drawn(name)
        states = by_loop(cell, params, x, h0)
        g = np.random.default_rng(1).standard_normal(states.shape)
        before = np.concatenate([h0[:, None], states[:, :-1]], 1)
        J = np.asarray(as_matrix(cell.structure, jnp.asarray(linearized(cell, params, x, jnp.asarray(before))[1])))
        flat = g.reshape(B, T, -1)
        want = flat.copy()
        for t in reversed(range(T - 1)):
            want[:, t] += np.einsum("bij,bi->bj", J[:, t + 1], want[:, t + 1])
        system = System(params, jnp.asarray(x), jnp.asarray(h0), None, None)
        got = jit(partial(adjoint, cell, Reduction("associative", 64)))(system, states, g)
        np.testing.assert_allclose(np.asarray(got).reshape(B, T, -1), want, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", CELLS)
def test_gradients_are_those_of_finite_differences(name):
    with jax.enable_x64(True):
        cell, params, x, h0 = drawn(name)
        draw = np.random.default_rng(2)
        w = draw.standard_normal((B, T, WIDTH))

        def loss(arguments):
            solver = Solver(tolerance=1e-13)
            return (newton_solve(cell, *arguments, axis=1, solver=solver, impl="associative").outputs * w).sum()

        here = jax.tree.map(jnp.asarray, (params, x, h0))
        way = jax.tree.map(lambda a: jnp.asarray(draw.standard_normal(a.shape)), here)
        value, slope = jit(loss), jit(jax.grad(loss))(here)
        ahead, behind = (value(jax.tree.map(lambda a, v, s=s: a + s * v, here, way)) for s in (1e-5, -1e-5))
        along = sum(jnp.vdot(g, v) for g, v in zip(jax.tree.leaves(slope), jax.tree.leaves(way), strict=True))
        np.testing.assert_allclose(along, (ahead - behind) / 2e-5, rtol=1e-6)


STRUCTURES = {"diagonal": (3,), "blocks of 2": (2, 3), "blocks of 3": (3, 3), "heads": (2, 3), "dense": (4,)}


@pytest.mark.parametrize("length", [1, 2, 3, 45, 70, 1023])
@pytest.mark.parametrize("name", STRUCTURES)
def test_the_reduction_is_forward_substitution(name, length):
    with jax.enable_x64(True):
        structure, state = name.split(" ")[0], STRUCTURES[name]
        layout = {
            "diagonal": state,
            "blocks": (state[0], *state),
            "heads": (*state, state[-1]),
            "dense": (*state, state[-1]),
        }
        draw = np.random.default_rng(length)
        J = draw.uniform(-1, 1, (B, length, *layout[structure])) / np.sqrt(
            state[0] if structure == "blocks" else state[-1]
        )
        r = draw.standard_normal((B, length, *state))
        full, flat = np.asarray(as_matrix(structure, jnp.asarray(J))), r.reshape(B, length, -1)
        want = flat.copy()
        for t in range(1, length):
            want[:, t] += np.einsum("bij,bj->bi", full[:, t], want[:, t - 1])
        impl = "associative" if length < 64 else "chunked"
        run = jit(lambda J, r: block_scan(J, r, structure=structure, impl=impl, chunk=16)[0])
        np.testing.assert_allclose(np.asarray(run(J, r)).reshape(flat.shape), want, rtol=1e-11, atol=1e-11)


def test_paragru_without_recurrent_weights_is_the_linear_cell():
    """z = 1 - f and c given: the minGRU class; one iteration is exact."""
    with jax.enable_x64(True):
        cell, params, x, h0 = drawn("gru")
        plain = recipe("linear", WIDTH).cell
        gates = np.stack([-x[:, :, 0], np.tanh(x[:, :, 2])], 2)
        want = by_loop(plain, {}, gates, h0)
        without = {"a": np.zeros_like(params["a"])}
        found = newton_solve(cell, without, x, h0, axis=1, solver=Solver(iterations=1), impl="associative")
        np.testing.assert_allclose(found.states, want, rtol=0, atol=1e-12)


def test_paralstm_without_recurrent_weights_takes_two_iterations():
    """c is linear in c and exact after one; h reads the new c."""
    with jax.enable_x64(True):
        cell, params, x, h0 = drawn("lstm")
        without = jax.tree.map(np.zeros_like, params)
        want = by_loop(cell, without, x, h0)
        once, twice = (
            newton_solve(cell, without, x, h0, axis=1, solver=Solver(iterations=k), impl="associative").states
            for k in (1, 2)
        )
        np.testing.assert_allclose(once[:, :, 0], want[:, :, 0], rtol=0, atol=1e-12)
        assert np.abs(once[:, :, 1] - want[:, :, 1]).max() > 1e-3
        np.testing.assert_allclose(twice, want, rtol=0, atol=1e-12)


def test_padding_is_the_identity():
    """Rows of unequal lengths: last states and gradients are those of each row alone."""
    with jax.enable_x64(True):
        cell, params, x, h0 = drawn("gru")
        lengths = (T, 6)
        mask = jnp.arange(T)[None] < jnp.array(lengths)[:, None]

        def loss(params, x, h0, mask, impl):
            solver = Solver(iterations=T)
            found = newton_solve(cell, params, x, h0, axis=1, solver=solver, mask=mask, impl=impl)
            return jnp.sin(found.last).sum(), found.last

        run = jit(jax.grad(loss, (0, 1, 2), has_aux=True), static_argnums=4)
        (d_params, d_x, d_h0), last = run(params, x, h0, mask, "associative")
        rows = [(x[i : i + 1, :n], h0[i : i + 1]) for i, n in enumerate(lengths)]
        alone = [run(params, *row, None, "sequential") for row in rows]
        np.testing.assert_allclose(last, np.concatenate([one[1] for one in alone]), rtol=0, atol=1e-12)
        np.testing.assert_allclose(d_h0, np.concatenate([one[0][2] for one in alone]), rtol=0, atol=1e-11)
        np.testing.assert_allclose(d_x[1, :6], alone[1][0][1][0], rtol=0, atol=1e-11)
        assert np.all(d_x[1, 6:] == 0)
        both = jax.tree.map(jnp.add, alone[0][0][0], alone[1][0][0])
        jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-11), d_params, both)
