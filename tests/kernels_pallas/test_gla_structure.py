"""What the implementations of gla are made of, where they run, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from kernels_pallas import check_log_gate, gla, gla_step
from kernels_pallas.gated_linear_attention.decays import decays
from kernels_pallas.gated_linear_attention.intra import weights
from tests.kernels_pallas.gla_cases import call, draw, everything


def equations(jaxpr):
    """All equations, those of inner jaxprs included."""
    for equation in jaxpr.eqns:
        yield equation
        for parameter in jax.tree.leaves(equation.params, is_leaf=lambda p: hasattr(p, "eqns") or hasattr(p, "jaxpr")):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def gradient_equations(impl: str, T: int = 256, H: int = 2, K: int = 16, V: int = 32) -> list:
    q, v = jnp.zeros((1, T, H, K)), jnp.zeros((1, T, H, V))

    def loss(q, k, v, log_alpha):
        o, state = gla(q, k, v, log_alpha, impl=impl, chunk=32)
        return jnp.sum(o * o) + jnp.sum(state * state)

    return list(equations(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 2, 3)))(q, q, v, q).jaxpr))


@pytest.mark.parametrize(
    ("impl", "lengths"), [("recurrent", {256}), ("chunked", {8}), ("associative", set()), ("parallel", set())]
)
def test_implementations_are_what_their_names_say(impl, lengths):
    found = gradient_equations(impl)
    assert {e.params["length"] for e in found if e.primitive.name == "scan"} == lengths
    assert not any(e.primitive.name == "while" for e in found)


@pytest.mark.parametrize("impl", ["chunked", "associative"])
def test_gradient_holds_no_state_per_token(impl):
    largest = max(v.aval.size for e in gradient_equations(impl) for v in e.outvars)
    assert largest <= 256 * 2 * 16 * 32 / 4  # of T H K V


def test_gates_that_differ_in_kind_take_different_routes():
    q, v = jnp.zeros((1, 64, 1, 8)), jnp.zeros((1, 64, 1, 8))

    def matmuls(log_alpha):
        jaxpr = jax.make_jaxpr(lambda q, v: gla(q, q, v, log_alpha, chunk=32))(q, v).jaxpr
        return sum(e.primitive.name == "dot_general" for e in equations(jaxpr))

    assert matmuls(jnp.zeros((1, 1))) == matmuls(None) == 4  # Q K^T, P V, the states and their part
    assert matmuls(jnp.zeros((1, 8))) == 3 + 5  # squares of 1, 2, 4, 8 and 16 tokens instead of Q K^T


@pytest.mark.parametrize(("width", "sub_chunk"), [(4, 1), (4, 4), (1, 16)])
def test_no_exponent_is_ever_positive(monkeypatch, width, sub_chunk):
    exponents = []
    exp = jnp.exp
    monkeypatch.setattr(jnp, "exp", lambda x: exponents.append(float(x.max())) or exp(x))
    log_gate = -jax.random.exponential(jax.random.key(0), (1, 1, 1, 16, width))
    alpha = decays(log_gate, sub_chunk)
    weights(jnp.ones((1, 1, 1, 1, 16, 4)), jnp.ones((1, 1, 1, 16, 4)), alpha, sub_chunk)
    assert exponents
    assert max(exponents) <= 0


def test_no_gradient_passes_a_reset():
    arrays, options = draw("T65 groups packed")
    result = everything(arrays, options, impl="chunked", chunk=8)
    first = np.flatnonzero(np.diff(options["segment_ids"][0])) + 1
    assert len(first) == 3
    assert np.all(result["dlog_alpha"][0, first] == 0)
    assert np.all(result["dlog_alpha"][1, first] != 0)


@pytest.mark.parametrize(("case", "sub_chunk"), [("strong", 16), ("zero", 1)])
def test_extreme_gates_stay_finite(case, sub_chunk):
    result = everything(*draw(case), impl="chunked", chunk=64, sub_chunk=sub_chunk)
    assert all(np.isfinite(a).all() for a in result.values())


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize("impl", ["recurrent", "chunked", "associative"])
def test_lowers_for_accelerators(platform, impl):
    arrays, options = draw("T65 groups packed", jnp.bfloat16)

    def loss(arrays):
        o, state = call(arrays, options, impl=impl, chunk=64, sub_chunk=16)
        return jnp.sum(o.astype(jnp.float32)) + jnp.sum(state)

    assert export.export(jax.jit(jax.grad(loss)), platforms=[platform])(arrays).platforms == (platform,)


def test_final_state_is_optional():
    arrays, options = draw("T3 packed")
    assert call(arrays, options, output_final_state=False, impl="parallel")[1] is None


Q = jnp.zeros((2, 8, 4, 3))
KEYS = jnp.zeros((2, 8, 2, 3))
VALUES = jnp.zeros((2, 8, 2, 5))
REFUSED = {
    "'fast'": {"impl": "fast"},
    "pallas": {"impl": "pallas"},
    "chunk=24": {"chunk": 24},
    "sub_chunk=16 must not be larger": {"chunk": 8, "sub_chunk": 16},
    "must be \\[batch": {"q": Q[0]},
    "must not be empty": {"q": Q[:, :0], "k": KEYS[:, :0], "v": VALUES[:, :0]},
    "do not fit": {"v": VALUES[:, :7]},
    "must divide": {"q": Q[:, :, :3]},
    "floating point": {"k": KEYS.astype(jnp.int32)},
    "log_alpha must broadcast": {"log_alpha": jnp.zeros((2, 8, 4, 3))},
    "log_beta must broadcast": {"log_beta": jnp.zeros((2, 8, 2, 3))},
    "initial_state must be": {"initial_state": jnp.zeros((2, 2, 3, 5))},
    "segment_ids must be": {"segment_ids": jnp.zeros((8,), jnp.int32)},
}


@pytest.mark.parametrize("message", REFUSED)
def test_bad_input_is_refused_in_one_line(message):
    arguments = {"q": Q, "k": KEYS, "v": VALUES, "log_alpha": None} | REFUSED[message]
    q, k, v, log_alpha = (arguments.pop(n) for n in ("q", "k", "v", "log_alpha"))
    with pytest.raises(ValueError, match=message) as error:
        gla(q, k, v, log_alpha, **arguments)
    assert "\n" not in str(error.value)


def test_a_step_refuses_a_state_that_does_not_fit():
    with pytest.raises(ValueError, match="initial_state must be"):
        gla_step(Q[:, 0], KEYS[:, 0], VALUES[:, 0], None, jnp.zeros((2, 4, 5, 3)))


def test_check_log_gate_points_at_the_worst():
    check_log_gate(-np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"0\.5 at \(1, 0\)"):
        check_log_gate(np.array([[-1.0, 0.0], [0.5, -2.0]]))
    with pytest.raises(ValueError, match="nan"):
        check_log_gate(np.array([np.nan]))
