"""Inputs that the laws of gated linear attention are tested on: lengths, gates, groups, states, packed segments."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from kernels_pallas import gla

K, V = 4, 6

# Tests compile hundreds of small programs and run each once.
compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

# name: length and what differs from two heads with a gate a channel. `parts` are the lengths of packed segments.
CASES = {
    "T1": {"T": 1, "h0": True},
    "T2": {"T": 2},
    "T3 packed": {"T": 3, "parts": (1, 2)},
    "T37": {"T": 37, "h0": True},
    "T63 groups": {"T": 63, "H": 4, "G": 2},
    "T64": {"T": 64},
    "T65 groups packed": {"T": 65, "H": 4, "G": 2, "h0": True, "parts": (16, 1, 31, 17)},
    "T200 packed": {"T": 200, "h0": True, "parts": (7, 25, 100, 68)},
    "multi-query": {"T": 20, "H": 3, "G": 1},
    "no gate": {"T": 37, "gate": "none", "h0": True},
    "no gate packed": {"T": 37, "gate": "none", "parts": (5, 20, 12)},
    "scalar": {"T": 37, "gate": "scalar", "H": 4, "G": 2, "h0": True, "parts": (20, 17)},
    "constant scalar": {"T": 37, "gate": "constant scalar", "h0": True},
    "constant": {"T": 20, "gate": "constant"},
    "strong": {"T": 64, "gate": "strong", "h0": True},
    "zero": {"T": 20, "gate": "zero", "h0": True},
    "beta": {"T": 37, "beta": "channel", "H": 4, "G": 2, "h0": True, "parts": (16, 1, 20)},
    "beta alone": {"T": 20, "beta": "channel", "gate": "none"},
    "beta, scalar alpha": {"T": 20, "beta": "channel", "gate": "scalar"},
    "beta scalar": {"T": 20, "beta": "scalar"},
}


def draw(case: str, dtype=jnp.float32, seed: int = 0) -> tuple[dict, dict]:
    """(arrays that have gradients, options) of `gla`, for a case of the table."""
    spec = {"H": 2, "G": 2, "gate": "channel", "beta": "none", "h0": False, "parts": (), **CASES[case]}
    T, H, G = spec["T"], spec["H"], spec["G"]
    rng = np.random.default_rng(seed)
    arrays = {
        "q": rng.normal(size=(2, T, H, K)),
        "k": rng.normal(size=(2, T, G, K)),
        "v": rng.normal(size=(2, T, G, V)),
        "log_alpha": _log_gate(rng, spec["gate"], T, G, K),
        "log_beta": _log_gate(rng, spec["beta"], T, G, V),
        "initial_state": rng.normal(size=(2, H, K, V)) if spec["h0"] else None,
    }
    arrays = {name: a if a is None else jnp.asarray(a, dtype) for name, a in arrays.items()}
    options = {}
    if spec["parts"]:
        ids = np.concatenate([np.full(n, 5 + i % 2) for i, n in enumerate(spec["parts"])])  # ids may come back
        options["segment_ids"] = jnp.asarray(np.stack([ids, np.zeros_like(ids)]), jnp.int32)
    return arrays, options


def _log_gate(rng, kind: str, T: int, G: int, width: int):
    log_gate = -rng.exponential(size=(2, T, G, width))
    if kind == "strong":
        log_gate[..., 0], log_gate[..., 1], log_gate[..., 2] = -12, 0, -30
        log_gate[:, ::3, :, 3] = -200
    return {
        "none": None,
        "channel": log_gate,
        "strong": log_gate,
        "zero": 0 * log_gate,
        "scalar": log_gate[..., :1],
        "constant": log_gate[0, 0],
        "constant scalar": log_gate[0, 0, :, :1],
    }[kind]


def call(arrays: dict, options: dict, **settings):
    """`gla` on a case."""
    return gla(*(arrays[n] for n in ("q", "k", "v", "log_alpha")), **_rest(arrays), **options, **settings)


def _rest(arrays: dict) -> dict:
    return {name: arrays[name] for name in ("log_beta", "initial_state")}


@partial(compiled, static_argnames=("impl", "chunk", "sub_chunk", "config"))
def everything(arrays: dict, options: dict, **settings) -> dict:
    """Outputs, final state and the gradient of every array, for fixed random cotangents."""
    (o, state), vjp = jax.vjp(lambda arrays: call(arrays, options, **settings), arrays)
    rng = np.random.default_rng(7)
    (gradients,) = vjp(tuple(jnp.asarray(rng.normal(size=a.shape), a.dtype) for a in (o, state)))
    return {"o": o, "state": state} | {f"d{name}": g for name, g in gradients.items() if g is not None}


@cache
def exact(case: str) -> dict:
    """The same by the recurrent form in float64, as numpy arrays."""
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, everything(*draw(case, jnp.float64), impl="recurrent"))
