"""block_scan beside the laws of the table: every structure against plain loops, known answers, what it refuses."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paperlab.recurrence.block import AS_PLANES, BLOCKS_AS_MATRICES, MATRICES, PLANES, block_scan
from paperlab.recurrence.jacobian import as_matrix
from tests.golden.folder import FOLDER, needs_known_answers
from tests.recurrence.laws import QUICK

SHAPES = {
    "diagonal": ("diagonal", (4,), (4,)),
    "2x2": ("blocks", (2, 2, 3), (2, 3)),
    "3x3": ("blocks", (3, 3, 2), (3, 2)),
    "5x5": ("blocks", (5, 5, 2), (5, 2)),
    "heads": ("heads", (2, 3, 3), (2, 3)),
    "dense": ("dense", (4, 4), (4,)),
}
STRUCTURE_OF = {"diagonal": "diagonal", "dense": "dense", "block2": "blocks", "block3": "blocks"}


def loop(structure, A, b, h0):
    """The definition, with full matrices, one sequence [T, ...] at a time."""
    h, states = h0.reshape(-1), []
    for A_t, b_t in zip(np.asarray(as_matrix(structure, jnp.asarray(A))), b, strict=True):
        h = A_t @ h + b_t.reshape(-1)
        states.append(h.reshape(b.shape[1:]))
    return np.stack(states)


def draw(name, T, seed=0):
    _, of_A, of_b = SHAPES[name]
    random = np.random.default_rng(seed)
    return random.uniform(-0.8, 0.8, (T, *of_A)), random.standard_normal((T, *of_b)), random.standard_normal(of_b)


@pytest.mark.parametrize("impl", ["sequential", "in_place", "associative", "chunked"])
@pytest.mark.parametrize("name", SHAPES)
def test_equals_a_plain_loop(name, impl):
    with jax.enable_x64(True):
        A, b, h0 = draw(name, 11)
        run = partial(block_scan, structure=SHAPES[name][0], impl=impl, chunk=4)
        h, last = jax.jit(run, compiler_options=QUICK)(A, b, h0)
        np.testing.assert_allclose(h, loop(SHAPES[name][0], A, b, h0), rtol=0, atol=1e-11)
        np.testing.assert_array_equal(last, h[-1])


@pytest.mark.parametrize("impl", ["in_place", "associative", "chunked"])
@pytest.mark.parametrize("name", ["2x2", "dense"])
def test_one_coefficient_for_every_step(name, impl):
    """It need not be written out, and its gradient is the sum over time and batch."""
    structure, of_A, of_b = SHAPES[name]
    A, _, _ = draw(name, 1)
    A, b = A[0] * 0.5, np.random.default_rng(1).standard_normal((2, 9, *of_b))

    def loss(A, impl):
        return jnp.sum(jnp.sin(block_scan(A, b, structure=structure, impl=impl, chunk=4)[0]))

    with jax.enable_x64(True):
        run = jax.jit(jax.value_and_grad(loss), static_argnums=1, compiler_options=QUICK)
        want = run(np.broadcast_to(A, (2, 9, *of_A)), "sequential")
        got, gradient = run(A, impl)
        np.testing.assert_allclose(got, want[0], rtol=1e-12)
        np.testing.assert_allclose(gradient, want[1].sum((0, 1)), rtol=0, atol=1e-11)
        np.testing.assert_allclose(run(A, "sequential")[1], gradient, rtol=0, atol=1e-11)


def test_time_may_stand_before_the_batch():
    A, b, h0 = (jnp.stack([jnp.asarray(x)] * 2, axis) for x, axis in zip(draw("2x2", 7), (1, 1, 0), strict=True))
    h, last = block_scan(A, b, h0, axis=0, impl="sequential")
    want, want_last = block_scan(A.swapaxes(0, 1), b.swapaxes(0, 1), h0, impl="sequential")
    np.testing.assert_allclose(h, want.swapaxes(0, 1), rtol=1e-6)
    np.testing.assert_allclose(last, want_last, rtol=1e-6)


@pytest.mark.parametrize("name", ["2x2", "3x3", "dense"])
def test_composition_is_associative_and_planes_are_matrices(name):
    with jax.enable_x64(True):
        A = draw(name, 3)[0]
        if name == "dense":
            left = MATRICES.compose(MATRICES.compose(A[2], A[1]), A[0])
            right = MATRICES.compose(A[2], MATRICES.compose(A[1], A[0]))
        else:
            first, second, third = (AS_PLANES.coefficient(jnp.asarray(a)) for a in A)
            left = jnp.asarray(PLANES.compose(PLANES.compose(third, second), first))
            right = jnp.asarray(PLANES.compose(third, PLANES.compose(second, first)))
            x, y, z = (BLOCKS_AS_MATRICES.coefficient(jnp.asarray(a)) for a in A)
            np.testing.assert_allclose(jnp.moveaxis(left, -1, 0), z @ y @ x, rtol=0, atol=1e-12)
        np.testing.assert_allclose(left, right, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["diag", "block2", "block3", "dense"])
@needs_known_answers()
def test_known_linear_solves(kind):
    """s_t = J_t s_{t-1} + r_t, rows and columns of blocks in the order variable, channel."""
    with np.load(FOLDER / "pararnn" / "linear_solve_L45.npz") as file, jax.enable_x64(True):
        J, r, want = (file[f"{kind}_{name}"] for name in ("J", "r", "sol"))
        structure = STRUCTURE_OF.get(kind, "diagonal")
        if structure == "blocks":
            K = J.shape[-1]
            J = np.moveaxis(J.reshape(*J.shape[:2], K, -1, K), -1, -2)
            r = r.reshape(*r.shape[:2], K, -1)
        run = partial(block_scan, structure=structure, impl="chunked", chunk=16)
        got = jax.jit(run, compiler_options=QUICK)(J, r)[0].reshape(want.shape)
        np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-11)


@needs_known_answers()
def test_known_blocks_with_gradients():
    with np.load(FOLDER / "_kernels" / "block2x2_scan_f64.npz") as file, jax.enable_x64(True):
        J, b, h0, g = (jnp.asarray(file[name]) for name in ("J", "b", "h0", "cotangent"))

        def run(J, b, h0):
            arrays = jnp.moveaxis(J, 1, -1), b.swapaxes(-1, -2), h0.swapaxes(-1, -2)
            return block_scan(*arrays, impl="associative")[0].swapaxes(-1, -2)

        @partial(jax.jit, compiler_options=QUICK)
        def with_gradients(*arrays):
            h, vjp = jax.vjp(run, *arrays)
            return h, vjp(g)

        h, gradients = with_gradients(J, b, h0)
        np.testing.assert_allclose(h, file["h"], rtol=1e-10, atol=1e-10)
        for got, name in zip(gradients, ("dJ", "db", "dh0"), strict=True):
            np.testing.assert_allclose(got, file[name], rtol=1e-10, atol=1e-10)


A, b = jnp.zeros((2, 5, 3, 3)), jnp.zeros((2, 5, 3))
REFUSED = {
    "structure='banded'": {"structure": "banded"},
    "impl='fast'": {"impl": "fast"},
    "no kernel for block_scan": {"impl": "pallas"},
    "A must be real": {"A": A.astype(complex)},
    "b must be real": {"b": b.astype(int)},
    "needs a time axis": {"b": b[0, 0]},
    "axis=-1": {"axis": -1},
    "must not be empty": {"b": b[:, :0]},
    "h0 must have": {"h0": jnp.zeros((3,))},
    "A .* does not broadcast": {"A": A[..., :2]},
    "segment_ids must be": {"segment_ids": jnp.zeros((2, 4), int)},
    "chunk=0": {"chunk": 0},
}


@pytest.mark.parametrize("message", REFUSED)
def test_bad_input_is_refused_in_one_line(message):
    arguments = {"A": A, "b": b, "structure": "dense"} | REFUSED[message]
    with pytest.raises(ValueError, match=message) as error:
        block_scan(arguments.pop("A"), arguments.pop("b"), **arguments)
    assert "\n" not in str(error.value)
