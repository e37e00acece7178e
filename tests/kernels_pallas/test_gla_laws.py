"""Laws of gla: every implementation computes the recurrence, its final state and all its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas import gla, gla_step
from tests.kernels_pallas.gla_cases import CASES, K, V, call, compiled, draw, everything, exact

SOME = ("T1", "T65 groups packed", "scalar", "strong", "beta")
FORMS = {
    "chunked": ({"impl": "chunked", "chunk": 8, "sub_chunk": 1}, tuple(CASES)),
    "chunked, sub-chunks of 4": (
        {"impl": "chunked", "chunk": 16, "sub_chunk": 4},
        ("T65 groups packed", "scalar", "strong"),
    ),
    "chunked, default": ({"impl": "auto"}, ("T200 packed", "constant scalar")),
    "associative": ({"impl": "associative", "chunk": 8}, ("T65 groups packed", "strong", "beta")),
    "parallel": ({"impl": "parallel"}, SOME),
}
TABLE = [(form, case) for form, (_, cases) in FORMS.items() for case in cases]


def assert_close(got: dict, want: dict, tolerance: float) -> None:
    """Every array to `tolerance` of its largest value (or of 1)."""
    assert got.keys() == want.keys()
    for name, w in want.items():
        np.testing.assert_allclose(got[name], w, rtol=0, atol=tolerance * max(1, np.abs(w).max()), err_msg=name)


@pytest.mark.parametrize(("form", "case"), TABLE)
def test_equals_recurrent_with_all_gradients(form, case):
    want = exact(case)
    with jax.enable_x64(True):
        assert_close(everything(*draw(case, jnp.float64), **FORMS[form][0]), want, 1e-10)


@pytest.mark.parametrize(
    ("form", "case", "tolerance"),
    [("chunked", "T65 groups packed", 2e-6), ("chunked", "strong", 2e-6), ("parallel", "T65 groups packed", 1e-5)],
)
def test_float32_is_accurate(form, case, tolerance):
    assert_close(everything(*draw(case), **FORMS[form][0]), exact(case), tolerance)


@pytest.mark.parametrize("form", ["chunked", "chunked, sub-chunks of 4"])
def test_bfloat16_inputs_keep_float32_states(form):
    arrays, options = draw("T65 groups packed", jnp.bfloat16)
    got = everything(arrays, options, **FORMS[form][0])
    want = everything(
        {name: a.astype(jnp.float32) for name, a in arrays.items() if a is not None} | {"log_beta": None},
        options,
        impl="recurrent",
    )
    assert got["o"].dtype == jnp.bfloat16
    assert got["state"].dtype == jnp.float32
    for name, w in want.items():
        error = np.linalg.norm(np.asarray(got[name], np.float64) - w) / np.linalg.norm(w)
        assert error < (5e-3 if name in ("o", "state") else 2e-2), name


@pytest.mark.parametrize(
    ("impl", "cut"),
    [("recurrent", 16), ("parallel", 16), ("associative", 19), ("chunked", 1), ("chunked", 16), ("chunked", 36)],
)
def test_split_with_carried_state_equals_whole(impl, cut):
    arrays, _ = draw("T37")
    segments = jnp.stack([jnp.zeros(37, jnp.int32), jnp.arange(37, dtype=jnp.int32) // 20])

    @compiled
    def part(arrays, segments, start, state):
        piece = {n: arrays[n][:, start] for n in ("q", "k", "v", "log_alpha")} | {"log_beta": None}
        return call(piece | {"initial_state": state}, {"segment_ids": segments[:, start]}, impl=impl, chunk=8)

    def run(start, stop, state):
        return part(arrays, segments, jnp.arange(start, stop), state)

    whole, last = run(0, 37, arrays["initial_state"])
    left, carried = run(0, cut, arrays["initial_state"])
    right, last_of_right = run(cut, 37, carried)
    np.testing.assert_allclose(jnp.concatenate([left, right], 1), whole, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(last_of_right, last, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def separate():
    """Outputs of the first row's segments, each on its own, and the state after the last."""
    (arrays, _), start, outputs, state = draw("T65 groups packed"), 0, [], None
    for length in CASES["T65 groups packed"]["parts"]:
        piece = {n: None if a is None else a[:1, start : start + length] for n, a in arrays.items()}
        piece["initial_state"] = arrays["initial_state"][:1] if start == 0 else None
        o, state = compiled(lambda piece: call(piece, {}, impl="recurrent"))(piece)
        outputs.append(o)
        start += length
    return jnp.concatenate(outputs, axis=1), state


@pytest.mark.parametrize("impl", ["recurrent", "parallel", "chunked", "associative"])
def test_packed_equals_separate(impl, separate):
    packed = everything(*draw("T65 groups packed"), impl=impl, chunk=8)
    for got, want in zip((packed["o"], packed["state"]), separate, strict=True):
        np.testing.assert_allclose(got[:1], want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("impl", ["recurrent", "parallel", "chunked", "associative"])
def test_no_output_depends_on_a_later_input(impl):
    arrays, _ = draw("T37")
    later = {n: a if a is None or n == "initial_state" else a.at[:, 21:].multiply(1.5) for n, a in arrays.items()}
    before, after = (everything(a, {}, impl=impl, chunk=8)["o"] for a in (arrays, later))
    np.testing.assert_array_equal(before[:, :21], after[:, :21])
    assert not np.allclose(before[:, 21:], after[:, 21:])


@pytest.mark.parametrize("case", ["T37", "T63 groups", "scalar", "constant scalar", "no gate", "beta"])
def test_steps_equal_whole(case):
    arrays, _ = draw(case)
    H = arrays["q"].shape[2]
    state = jnp.zeros((2, H, K, V)) if arrays["initial_state"] is None else arrays["initial_state"]
    whole, last = compiled(lambda arrays: call(arrays | {"initial_state": state}, {}))(arrays)

    def token(a, t):
        return a if a is None or a.ndim == 2 else a[:, t]

    @compiled
    def step(arrays, t, state):
        q, k, v, log_alpha, log_beta = (token(arrays[n], t) for n in ("q", "k", "v", "log_alpha", "log_beta"))
        return gla_step(q, k, v, log_alpha, state, log_beta=log_beta)

    for t in range(whole.shape[1]):
        o, state = step(arrays, t, state)
        np.testing.assert_allclose(o, whole[:, t], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(state, last, rtol=1e-5, atol=1e-5)


def test_a_group_is_its_heads_with_repeated_keys_values_and_gates():
    arrays, options = draw("T65 groups packed")
    repeated = {n: jnp.repeat(a, 2, axis=2) if n in ("k", "v", "log_alpha") else a for n, a in arrays.items()}
    for impl in ("recurrent", "chunked"):
        got, want = (everything(a, options, impl=impl, chunk=8) for a in (arrays, repeated))
        np.testing.assert_allclose(got["o"], want["o"], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(got["dk"], want["dk"].reshape(2, 65, 2, 2, K).sum(3), rtol=1e-4, atol=1e-4)


def test_permuted_heads_give_permuted_outputs():
    arrays, _ = draw("T37")
    swapped = {
        n: None if a is None else a[:, ::-1] if n == "initial_state" else a[:, :, ::-1] for n, a in arrays.items()
    }
    got, want = (everything(a, {}, impl="chunked", chunk=8) for a in (swapped, arrays))
    np.testing.assert_allclose(got["o"], want["o"][:, :, ::-1], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(got["state"], want["state"][:, ::-1], rtol=1e-6, atol=1e-6)


def test_without_gate_it_is_causal_linear_attention():
    arrays, _ = draw("no gate packed")
    q, k, v = (arrays[n] for n in ("q", "k", "v"))
    weights = jnp.tril(jnp.einsum("bihk,bjhk->bhij", q, k) * K**-0.5)
    o, _ = compiled(lambda q, k, v: gla(q, k, v, None, chunk=8))(q, k, v)
    np.testing.assert_allclose(o, jnp.einsum("bhij,bjhv->bihv", weights, v), rtol=1e-5, atol=1e-5)


def test_a_constant_gate_is_retnet():
    arrays, _ = draw("no gate packed")
    q, k, v = (arrays[n] for n in ("q", "k", "v"))
    log_gamma = jnp.log(jnp.array([0.9, 0.5]))
    distance = jnp.arange(37)[:, None] - jnp.arange(37)
    D = jnp.where(distance >= 0, jnp.exp(log_gamma[:, None, None] * jnp.maximum(distance, 0)), 0)
    o, _ = compiled(lambda q, k, v: gla(q, k, v, log_gamma[:, None], scale=1.0, chunk=8))(q, k, v)
    want = jnp.einsum("bihk,bjhk,hij,bjhv->bihv", q, k, D, v)
    np.testing.assert_allclose(o, want, rtol=1e-5, atol=1e-5)


def test_gate_gradient_by_finite_differences():
    with jax.enable_x64(True):
        arrays, options = draw("beta", jnp.float64)

        def loss(gates):
            o, state = call(arrays | gates, options, impl="chunked", chunk=8)
            return jnp.sum(jnp.sin(o)) + jnp.sum(jnp.cos(state))

        gates = {n: arrays[n] for n in ("log_alpha", "log_beta")}
        rng = np.random.default_rng(3)
        direction = {n: rng.normal(size=a.shape) for n, a in gates.items()}
        gradient = compiled(jax.grad(loss))(gates)
        slope = sum(np.vdot(gradient[n], direction[n]) for n in gates)
        up, down = (compiled(loss)({n: a + e * direction[n] for n, a in gates.items()}) for e in (1e-6, -1e-6))
        np.testing.assert_allclose((up - down) / 2e-6, slope, rtol=1e-6)
