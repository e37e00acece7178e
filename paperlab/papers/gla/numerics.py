"""Claims 1, 2 and 5: the forms agree, the gate gradient is exact and cheap, decoding needs constant memory.

Known answers come from `tests/golden/gla` (the reference implementation's outputs); what is timed or weighed here is a ratio of
two things measured in one process.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kernels_pallas import gla
from paperlab.evidence import Laboratory, Outcome

GOLDEN = Path(__file__).parents[3] / "tests" / "golden" / "gla"
RECURRENT_FILES = ("recurrent_small.npz", "recurrent_ragged_T37_noh0.npz", "recurrent_strong_decay.npz")
GRID = [(chunk, sub_chunk) for chunk in (16, 64, 128) for sub_chunk in (4, 16)]


def _golden(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / name, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def _inputs(case: dict[str, np.ndarray]) -> tuple[list[jax.Array], jax.Array | None]:
    state = case.get("h0")
    return [jnp.asarray(case[name]) for name in ("q", "k", "v", "gk")], None if state is None else jnp.asarray(state)


def equivalence(lab: Laboratory) -> Outcome:
    """The largest |o - o_float64| and |S - S_float64| over all forms, chunk sizes and golden files."""
    del lab
    errors: dict[str, float] = {}
    forms: list[tuple[str, dict[str, Any]]] = [("recurrent", {}), ("parallel", {})]
    forms += [(impl, {"chunk": c, "sub_chunk": s}) for impl in ("chunked", "associative") for c, s in GRID]
    with jax.default_matmul_precision("highest"):
        for name in RECURRENT_FILES:
            case = _golden(name)
            args, state = _inputs(case)
            for impl, sizes in forms:
                o, last = jax.jit(partial(gla, impl=impl, **sizes))(*args, initial_state=state)
                worst = max(np.abs(o - case["o_float64"]).max(), np.abs(last - case["ht_float64"]).max())
                label = impl + "".join(f" {key}={value}" for key, value in sizes.items())
                errors[label] = max(errors.get(label, 0.0), float(worst))
    return Outcome(max(errors.values()), details={"max_abs_error": errors})


def one_level(q: jax.Array, k: jax.Array, v: jax.Array, log_alpha: jax.Array) -> jax.Array:
    """Section 4.2's first-level form with one chunk: (Q*B)(K/B)^T, which divides by a product of gates. [B,T,H,*]."""
    total = jnp.cumsum(log_alpha, axis=1)
    scores = jnp.einsum("bihk,bjhk->bhij", q * q.shape[-1] ** -0.5 * jnp.exp(total), k * jnp.exp(-total))
    causal = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    return jnp.einsum("bhij,bjhv->bihv", jnp.where(causal, scores, 0), v)


def one_level_breaks(lab: Laboratory) -> Outcome:
    """How many outputs of the one-level form are not finite under strong decay, chunk 64 (the file's whole length)."""
    del lab
    args, _ = _inputs(_golden("recurrent_strong_decay.npz"))
    o = jax.jit(one_level)(*args)
    bad = int((~jnp.isfinite(o)).sum())
    return Outcome(bad, details={"outputs": int(o.size)})


def two_levels_hold(lab: Laboratory) -> Outcome:
    """The error of the two-level form (64, 16) on the same inputs."""
    del lab
    case = _golden("recurrent_strong_decay.npz")
    args, state = _inputs(case)
    with jax.default_matmul_precision("highest"):
        o, _ = jax.jit(partial(gla, impl="chunked", chunk=64, sub_chunk=16))(*args, initial_state=state)
    return Outcome(float(np.abs(o - case["o_float64"]).max()))


def _loss(impl: str, q: Any, k: Any, v: Any, g: Any, state: Any, do: Any, d_last: Any) -> jax.Array:
    o, last = gla(q, k, v, g, initial_state=state, impl=impl)
    return (o * do).sum() + (last * d_last).sum()


def gate_gradient(lab: Laboratory) -> Outcome:
    """The largest difference between the closed-form backward and autodiff of the recurrence, with all cotangents, 3 seeds."""
    del lab
    per_seed = []
    for seed in range(3):
        keys = jax.random.split(jax.random.key(seed), 7)
        shape = (2, 100, 2, 16)
        q, k, v = (jax.random.normal(key, shape) for key in keys[:3])
        g = jax.nn.log_sigmoid(jax.random.normal(keys[3], shape)) / 4
        state, d_last = (jax.random.normal(key, (2, 2, 16, 16)) for key in keys[4:6])
        args = (q, k, v, g, state, jax.random.normal(keys[6], shape), d_last)
        with jax.default_matmul_precision("highest"):
            ours, theirs = (
                jax.jit(jax.grad(partial(_loss, impl), argnums=(0, 1, 2, 3, 4)))(*args)
                for impl in ("chunked", "recurrent")
            )
        per_seed.append(max(float(jnp.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True)))
    return Outcome(max(per_seed), per_seed=per_seed)


def gradient_memory(lab: Laboratory) -> Outcome:
    """Temporary bytes of the compiled gradient at B=1, T=2048, H=2, K=V=64: closed form against a differentiated lax.scan."""
    del lab
    array = jax.ShapeDtypeStruct((1, 2048, 2, 64), jnp.float32)
    state = jax.ShapeDtypeStruct((1, 2, 64, 64), jnp.float32)

    def temporary(impl: str) -> int:
        step = jax.jit(jax.grad(partial(_loss, impl), argnums=(0, 1, 2, 3, 4)))
        analysis = step.lower(array, array, array, array, state, array, state).compile().memory_analysis()
        if analysis is None:
            raise RuntimeError("this backend does not say how much memory a program needs")
        return analysis.temp_size_in_bytes

    return Outcome(temporary("chunked"), temporary("recurrent"))


def _language_model() -> tuple[Any, Any]:
    from paperlab.config import base_config
    from paperlab.models import lm

    config = base_config()
    config.model.update(mixer="gla", width=64, depth=2, heads=2)
    model = lm.make(config, 257)
    return model, model.init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))


def decoding_equals_forward(lab: Laboratory) -> Outcome:
    """Prefill of 128 tokens and 256 recurrent steps against one forward pass over the 384: the largest difference of logits."""
    del lab
    model, params = _language_model()
    tokens = jax.random.randint(jax.random.key(1), (2, 384), 0, 257)

    @jax.jit
    def decoded(params: Any, tokens: jax.Array) -> jax.Array:
        state = model.zero_state(2, 384, jnp.float32)
        first, state = model.apply(params, tokens[:, :128], state=state)

        def step(state: Any, token_and_position: Any) -> tuple[Any, jax.Array]:
            token, position = token_and_position
            logits, state = model.apply(params, token, state, jnp.full((2,), position), method="step")
            return state, logits

        _, rest = jax.lax.scan(step, state, (tokens[:, 128:].T, jnp.arange(128, 384)))
        return jnp.concatenate([first, rest.swapaxes(0, 1)], 1)

    with jax.default_matmul_precision("highest"):
        whole, _ = jax.jit(model.apply)(params, tokens)
        return Outcome(float(jnp.abs(decoded(params, tokens) - whole).max()))


def cache_bytes(lab: Laboratory) -> Outcome:
    """Bytes of the state after 8192 tokens against after 128."""
    del lab
    model, _ = _language_model()

    def size(length: int) -> int:
        state = jax.eval_shape(lambda: model.zero_state(1, length, jnp.float32))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))

    return Outcome(size(8192), size(128))


def time_per_token(lab: Laboratory) -> Outcome:
    """Milliseconds a decoded token after a context of 8192 against after 128: medians of interleaved blocks of 64 tokens."""
    del lab
    model, params = _language_model()

    @jax.jit
    def block(params: Any, state: Any, token: jax.Array, position: jax.Array) -> Any:
        def step(carry: Any, _: None) -> tuple[Any, None]:
            state, token, position = carry
            logits, state = model.apply(params, token, state, position, method="step")
            return (state, logits.argmax(-1).astype(token.dtype), position + 1), None

        return jax.lax.scan(step, (state, token, position), None, length=64)[0]

    prefill = jax.jit(
        lambda params, tokens: model.apply(params, tokens, state=model.zero_state(1, 8192, jnp.float32))[1]
    )
    runs: dict[int, Callable[[], Any]] = {}
    for length in (128, 8192):
        state = prefill(params, jnp.zeros((1, length), jnp.int32))
        runs[length] = partial(block, params, state, jnp.zeros((1,), jnp.int32), jnp.full((1,), length))
    times: dict[int, list[float]] = {length: [] for length in runs}
    for run in runs.values():
        jax.block_until_ready(run())
    for _ in range(30):
        for length, run in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            times[length].append((time.perf_counter() - start) / 64 * 1e3)
    long, short = (float(np.median(times[length])) for length in (8192, 128))
    return Outcome(long, short, details={"unit": "ms a token, batch 1", "blocks": 30})
