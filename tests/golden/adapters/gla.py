"""Known answers of gated linear attention through kernels_pallas.gla and the mixer of paperlab.

    recurrent, general_alpha_beta   the bare recurrence, by the chunked form; every state by `gla_step`
    layer                           the whole mixer

Gradients are those of sum(o * do) + sum(ht * dht), where the case has these cotangents.
"""

import jax
import jax.numpy as jnp
from jax import Array

from kernels_pallas import gla, gla_step
from paperlab.mixers.gla import Mixer

GATE_NAMES = {"log_alpha": ("gk", "log_alpha", "alpha"), "log_beta": ("gv", "log_beta", "beta")}
STATE_NAMES = ("h0", "s0", "initial_state")


def run(kind: str, options: dict, inputs: dict, params: dict) -> dict:
    """Every array that a case of gla may ask for."""
    if kind in ("recurrent", "general_alpha_beta"):
        return recurrence(options, {name: jnp.asarray(a) for name, a in inputs.items()})
    if kind == "layer":
        return layer(options, *({name: jnp.asarray(a) for name, a in arrays.items()} for arrays in (inputs, params)))
    raise ValueError(f"gla: unknown kind {kind!r}")


def recurrence(options: dict, inputs: dict) -> dict:
    """q, k, v, gates and maybe a state in any layout -> outputs, states and gradients in the same layout."""
    cotangents = {name: inputs[name] for name in ("do", "dht") if name in inputs}
    arrays = {name: a for name, a in inputs.items() if name not in cotangents}
    layout = options.get("layout") or "BTHD"

    @jax.jit
    def outputs(arrays: dict) -> tuple[Array, Array]:
        o, state = gla(*_operands(arrays, options, layout), **_settings(arrays, options, layout))
        return _from_bthd(o, layout), _plain_state(state, layout)

    (o, state), vjp = jax.vjp(outputs, arrays)
    result = {"o": o, "ht": state, "o_float64": o, "ht_float64": state, "states": _states(arrays, options, layout)}
    if cotangents:
        zeros = {"do": jnp.zeros_like(o), "dht": jnp.zeros_like(state)}
        (gradients,) = vjp(tuple((zeros | cotangents)[name] for name in ("do", "dht")))
        result |= {f"d{name}": g for name, g in gradients.items()}
    return result


def _operands(arrays: dict, options: dict, layout: str) -> tuple[Array | None, ...]:
    q, k, v = (_to_bthd(arrays[name], layout) for name in ("q", "k", "v"))
    return q, k, v, _log_gate(arrays, "log_alpha", options, layout)


def _settings(arrays: dict, options: dict, layout: str) -> dict:
    state = next((arrays[name] for name in STATE_NAMES if name in arrays), None)
    inside = options.get("scale_applied_to_q_inside", True)
    return {
        "log_beta": _log_gate(arrays, "log_beta", options, layout),
        "scale": options.get("scale") if inside else 1.0,
        "initial_state": state[None, None] if state is not None and layout == "TD" else state,
    }


def _log_gate(arrays: dict, name: str, options: dict, layout: str) -> Array | None:
    gate = next((arrays[alias] for alias in GATE_NAMES[name] if alias in arrays), None)
    if gate is None:
        return None
    return _to_bthd(gate if options.get("gate_is_log", True) else jnp.log(gate), layout)


def _states(arrays: dict, options: dict, layout: str) -> Array:
    """The state after every token, by steps: [T,K,V] or [B,T,H,K,V]."""
    q, k, v, log_alpha = _operands(arrays, options, layout)
    settings = _settings(arrays, options, layout)
    start = settings["initial_state"]
    if start is None:
        start = jnp.zeros((q.shape[0], q.shape[2], q.shape[3], v.shape[3]), q.dtype)

    def step(state, token):
        q, k, v, log_alpha, log_beta = token
        _, state = gla_step(q, k, v, log_alpha, state, log_beta=log_beta)
        return state, state

    tokens = jax.tree.map(lambda a: a.swapaxes(0, 1), (q, k, v, log_alpha, settings["log_beta"]))
    states = jax.lax.scan(step, start, tokens)[1].swapaxes(0, 1)
    return states[0, :, 0] if layout == "TD" else states


def _to_bthd(a: Array, layout: str) -> Array:
    if layout == "TD":
        return a[None, :, None]
    return a.transpose([layout.index(axis) for axis in "BTHD"])


def _from_bthd(a: Array, layout: str) -> Array:
    if layout == "TD":
        return a[0, :, 0]
    return a.transpose(["BTHD".index(axis) for axis in layout])


def _plain_state(state: Array, layout: str) -> Array:
    return state[0, 0] if layout == "TD" else state


def layer(options: dict, inputs: dict, params: dict) -> dict:
    """The mixer on x [B,T,d]: output, gate, core output, final state and all gradients of sum(y * do)."""
    x = inputs["x"]
    mixer = _mixer(options, params, x)
    state = mixer.zero_state(x.shape[0])
    initial = next((inputs[name] for name in STATE_NAMES if name in inputs), state["S"])

    @jax.jit
    def outputs(x: Array, initial: Array, params: dict):
        variables = {"params": _variables(mixer, params, options)}
        (y, after), sown = mixer.apply(variables, x, state=state | {"S": initial}, mutable=["intermediates"])
        sown = {name: values[0] for name, values in sown["intermediates"].items() if isinstance(values, tuple)}
        return (y, after["S"]), sown

    (y, final), vjp, sown = jax.vjp(outputs, x, initial, params, has_aux=True)
    result = {"y": y, "final_state": final, "ht": final, "log_alpha": sown["log_alpha"], "core_out": sown["core_out"]}
    if "do" in inputs:
        dx, dinitial, dparams = vjp((inputs["do"], inputs.get("dht", jnp.zeros_like(final))))
        result |= {"dx": dx} | {f"d{name}": g for name, g in dparams.items()}
        result |= {f"d{name}": dinitial for name in STATE_NAMES}
    return result


def _mixer(options: dict, params: dict, x: Array) -> Mixer:
    axis = 1 if _right_multiplied(options) else 0
    width, heads = x.shape[-1], options["num_heads"]
    norm = options.get("norm")
    fields = {
        "kv_heads": options.get("num_kv_heads") or 0,
        "expand_k": params["W_q"].shape[axis] / width,
        "expand_v": params["W_o"].shape[1 - axis] / width,
        "gate_low_rank": params["W_gk1"].shape[axis] if "W_gk1" in params else 0,
        "gate_temperature": options.get("gate_temperature") or 1.0,
        "gate_clamp": options.get("gate_clamp") or options.get("clamp_min") or 0.0,
        "norm": {"rmsnorm": "rms", "layernorm": "layer", None: "none"}.get(norm, norm),
        "norm_affine": "W_norm" in params,
        "norm_per_head": options.get("norm_weight_shared_over_heads") is False,
        "norm_eps": options.get("norm_eps") or 1e-5,
        "use_output_gate": "W_g" in params,
        "output_gate_bias": "W_g_bias" in params,
        "output_gate_activation": options.get("output_gate_activation") or "silu",
        "feature_map": options.get("feature_map") or "identity",
        "short_conv": bool(options.get("short_conv")),
    }
    if fields["short_conv"]:
        fields["conv_width"] = options.get("conv_width") or options.get("conv_size") or 4
    return Mixer(width=width, heads=heads, dtype=x.dtype, **fields)


def _variables(mixer: Mixer, params: dict, options: dict) -> dict:
    """Weights under the mixer's names."""
    turn = (lambda w: w) if _right_multiplied(options) else jnp.transpose
    kernels = {"q": "W_q", "k": "W_k", "v": "W_v", "output_gate": "W_g", "gate_down": "W_gk1", "out": "W_o"}
    kernels["gate_up"] = "W_gk2" if "W_gk2" in params else "W_gk"
    tree = {ours: {"kernel": turn(params[name])} for ours, name in kernels.items() if name in params}
    G, K, V = mixer.head_sizes()
    for ours, name in (("gate_up", "W_gk2_bias"), ("gate_up", "W_gk_bias"), ("output_gate", "W_g_bias")):
        if name in params:
            tree[ours]["bias"] = params[name]
    tree["gate_up"].setdefault("bias", jnp.zeros(G * K, params["W_q"].dtype))
    if mixer.norm_affine and mixer.norm != "none":
        shape = (mixer.heads, V) if mixer.norm_per_head else (V,)
        tree["out_norm"] = {"scale": params["W_norm"].reshape(shape)}
        if mixer.norm == "layer":
            tree["out_norm"]["bias"] = params.get("W_norm_bias", jnp.zeros(shape, params["W_norm"].dtype)).reshape(
                shape
            )
    if mixer.short_conv:
        tree |= {f"{name}_conv": {"kernel": _taps(params[f"W_conv_{name}"])} for name in ("q", "k", "v")}
    return tree


def _taps(w: Array) -> Array:
    """[C,W], oldest first, as torch keeps depthwise filters -> [W,C], newest first."""
    return w.reshape(w.shape[0], w.shape[-1]).T[::-1]


def _right_multiplied(options: dict) -> bool:
    return options.get("weight_orientation", "x @ W").replace(" ", "") == "x@W"
