"""The TPU kernels of gla, run by Pallas's interpreter: the recurrence, its state and all its gradients, on any device."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas import gla
from kernels_pallas.compat import tpu_simulation
from kernels_pallas.gated_linear_attention.inputs import canonical
from kernels_pallas.gated_linear_attention.tpu import TpuConfig, tpu
from tests.kernels_pallas.gla_cases import call, compiled, draw, everything, exact

GOLDEN = Path(__file__).parents[1] / "golden" / "gla"
KERNEL = {"impl": "interpret", "config": TpuConfig(chunk=8)}
CASES = (
    "T1",
    "T65 groups packed",
    "multi-query",
    "no gate packed",
    "scalar",
    "strong",
    "zero",
)


def assert_close(got: dict, want: dict, tolerance: float) -> None:
    """Every array to `tolerance` of its largest value (or of 1)."""
    assert got.keys() == want.keys()
    for name, w in want.items():
        np.testing.assert_allclose(got[name], w, rtol=0, atol=tolerance * max(1, np.abs(w).max()), err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_equals_the_float64_recurrence_with_all_gradients(case):
    assert_close(everything(*draw(case), **KERNEL), exact(case), 1e-6)


def test_chunks_of_any_size_agree():
    arrays, options = draw("T200 packed")
    for chunk in (64, 128):
        got = everything(arrays, options, impl="interpret", config=TpuConfig(chunk=chunk))
        assert_close(got, exact("T200 packed"), 1e-6)


@pytest.mark.parametrize("case", ["T65 groups packed", "scalar"])
def test_bfloat16_inputs_keep_float32_states(case):
    arrays, options = draw(case, jnp.bfloat16)
    got = everything(arrays, options, **KERNEL)
    wide = {name: None if a is None else a.astype(jnp.float32) for name, a in arrays.items()}
    want = everything(wide, options, impl="recurrent")
    assert got["o"].dtype == jnp.bfloat16
    assert got["state"].dtype == jnp.float32
    for name, w in want.items():
        error = np.linalg.norm(np.asarray(got[name], np.float64) - w) / np.linalg.norm(w)
        assert error < (5e-3 if name in ("o", "state") else 2e-2), name


@pytest.mark.parametrize("width", ["channel", "scalar"])
def test_tiles_of_values_and_heads_as_blocks_of_lanes(width):
    B, T, H, G, K, V = 1, 20, 4, 2, 128, 256
    keys = jax.random.split(jax.random.key(0), 5)
    arrays = {
        "q": jax.random.normal(keys[0], (B, T, H, K)),
        "k": jax.random.normal(keys[1], (B, T, G, K)),
        "v": jax.random.normal(keys[2], (B, T, G, V)),
        "log_alpha": -jax.random.exponential(keys[3], (B, T, G, K if width == "channel" else 1)),
        "log_beta": None,
        "initial_state": jax.random.normal(keys[4], (B, H, K, V)),
    }
    want = everything(arrays, {}, impl="recurrent")
    assert_close(everything(arrays, {}, impl="interpret", config=TpuConfig(16, tile=128)), want, 2e-6)


@pytest.mark.parametrize("name", ["recurrent_small", "recurrent_ragged_T37_noh0", "recurrent_strong_decay"])
def test_known_answers(name):
    case = {key: jnp.asarray(a) for key, a in np.load(GOLDEN / f"{name}.npz").items() if a.ndim}
    arrays = {key: case[key] for key in ("q", "k", "v", "gk", "h0") if key in case}

    @compiled
    def answers(arrays):
        def run(a):
            return gla(*(a[n] for n in ("q", "k", "v", "gk")), initial_state=a.get("h0"), **KERNEL)

        (o, state), vjp = jax.vjp(run, arrays)
        return o, state, vjp((case["do"], case["dht"] if "dht" in case else jnp.zeros_like(state)))[0]

    o, state, gradients = answers(arrays)
    np.testing.assert_allclose(o, case["o_float64"], rtol=0, atol=2e-5)
    np.testing.assert_allclose(state, case["ht_float64"], rtol=0, atol=2e-5)
    for key, got in gradients.items():
        np.testing.assert_allclose(got, case[f"d{key}"], rtol=0, atol=1e-4, err_msg=key)


def simulated(case: str, seed: int) -> dict[str, jax.Array]:
    """Everything of a case, in simulated memory that is NaN at first, the programs of different heads in a random order."""
    arrays, options = draw(case)
    B, T, H, K = arrays["q"].shape

    def run(arrays):
        q, k, v, log_alpha, state = (arrays[n] for n in ("q", "k", "v", "log_alpha", "initial_state"))
        x = canonical(q, k, v, log_alpha, None, None, state, options.get("segment_ids"))
        o, last = tpu(x, TpuConfig(chunk=16), tpu_simulation(random_seed=seed))
        return o.reshape(B, T, H, -1), last.reshape(B, H, K, -1)

    @compiled
    def everything(arrays):
        result, vjp = jax.vjp(run, arrays)
        rng = np.random.default_rng(7)
        return *result, vjp(tuple(jnp.asarray(rng.normal(size=a.shape), a.dtype) for a in result))[0]

    o, state, gradients = everything({n: a for n, a in arrays.items() if n != "log_beta"})
    return {"o": o, "state": state} | {f"d{n}": g for n, g in gradients.items() if g is not None}


@pytest.mark.parametrize(("case", "seed"), [("multi-query", 0), ("scalar", 1)])
def test_no_memory_is_read_before_it_is_written_in_any_order_of_heads(case, seed):
    assert_close(simulated(case, seed), exact(case), 1e-6)


def test_a_batch_by_vmap_equals_its_members():
    arrays, _ = draw("T37")
    run = compiled(partial(call, options={}, **KERNEL))
    tied = {n: None if a is None else jnp.stack([a, 2 * a]) for n, a in arrays.items()}
    o, state = compiled(jax.vmap(partial(call, options={}, **KERNEL)))(tied)
    for i in range(2):
        want = run({n: None if a is None else a[i] for n, a in tied.items()})
        np.testing.assert_allclose(o[i], want[0], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(state[i], want[1], rtol=1e-6, atol=1e-6)


def test_no_gradient_passes_a_reset():
    arrays, options = draw("T65 groups packed")
    result = everything(arrays, options, **KERNEL)
    first = np.flatnonzero(np.diff(options["segment_ids"][0])) + 1
    assert np.all(result["dlog_alpha"][0, first] == 0)
    assert np.all(result["dlog_alpha"][1, first] != 0)
