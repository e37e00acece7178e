"""Known answers of pLSTM along a sequence.

core1d            the bare recurrence by blocks of 2^chunk_levels steps, its gating tensor and its levels
orthogonalize     orthogonal matrices from any
transition_layer  gates [.., heads, JT, JT] from x
layer1d           the whole mixer
"""

import jax
import jax.numpy as jnp

from paperlab.layers.gates import WEIGHTS
from paperlab.layers.orthogonal import exponential, householder, qr
from paperlab.layers.transition import Transition
from paperlab.mixers.plstm import Mixer
from paperlab.recurrence.line import line_gating, line_memory
from paperlab.recurrence.line_blocks import Gates, levels

ORTHOGONAL = {"exp_series": "exponential", "householder": "householder", "qr": "qr_lapack"}


def core1d(options: dict, inputs: dict, params: dict) -> dict:
    """Outputs with and without a state that enters, gradients of sum(w * out), G and the blocks of every level."""
    arrays = {name: jnp.asarray(a) for name, a in inputs.items()}
    w, entering = arrays.pop("w", None), arrays.pop("C_initial", None)
    settings = {"scale": options.get("score_scale"), "chunk": 2 ** options["chunk_levels"], "impl": "chunked"}

    @jax.jit
    def run(arrays: dict, entering: jax.Array | None) -> tuple:
        q, k, v, source, transition, mark, direct = (arrays[n] for n in ("Q", "K", "V", "S0", "T0", "M0", "D0"))
        return line_memory(q, k, v, Gates(source, transition, mark), direct, entering=entering, **settings)

    (out, last), vjp = jax.vjp(lambda arrays: run(arrays, None), arrays)
    found = {"out": out, "C_last": last}
    if entering is not None:
        found["out_from_C_initial"], found["C_last_from_C_initial"] = run(arrays, entering)
    if w is not None:
        found |= {f"grad_{name}": g for name, g in vjp((w, jnp.zeros_like(last)))[0].items()}
    gates = Gates(*(arrays[n] for n in ("S0", "T0", "M0")))
    blocks = levels(gates)
    JO, JQ, JT, JK, JV = (options[name] for name in ("JO", "JQ", "JT", "JK", "JV"))
    B, T = out.shape[:2]
    found |= {f"T_level{i}": level.through for i, level in enumerate(blocks)}
    found["S_top"] = jnp.moveaxis(blocks[-1].write.reshape(B, 1, JT, T, JK, JV), 3, 2)
    found["M_top"] = blocks[-1].read.reshape(B, 1, T, JO, JQ, JT)
    found["G_nodirect"] = line_gating(gates)[:, None]
    return found


def orthogonalize(options: dict, inputs: dict, params: dict) -> dict:
    """mat -> an orthogonal matrix; the names of the output say which."""
    mat = jnp.asarray(inputs["mat"])
    kind = options["orthogonalization"]
    if kind == "exp_series":
        return {"mat_exp_orth": exponential(options.get("factor", 1.0) * mat, options.get("series_terms") or 16)}
    if kind == "householder":
        return {"mat_householder": householder(mat, options.get("norm_eps") or 1e-5)}
    return {"mat_qr": qr(mat, positive=False)}


def transition_layer(options: dict, inputs: dict, params: dict) -> dict:
    """x [..., D] -> [..., heads, JT, JT]; names carry a prefix."""
    prefix = next(name for name in inputs if name.endswith("x"))[:-1]
    named = {name.removeprefix(prefix): jnp.asarray(a) for name, a in params.items()}
    module, tree = transition(options, named)
    return {f"{prefix}out": module.apply({"params": tree}, jnp.asarray(inputs[f"{prefix}x"]))}


def transition(options: dict, named: dict) -> tuple[Transition, dict]:
    """The module and its weights under our names, from `eigenvalues_bias` and so on."""
    heads, JT = named["eigenvalues_bias"].shape
    weight = named.get("eigenvalues_weight")
    module = Transition(
        heads=heads,
        JT=JT,
        eigenvalues=options.get("eigenvalue_activation") or "tanh",
        factor=options.get("eigenvalue_factor") or 5.0,
        orthogonal=ORTHOGONAL[options.get("orthogonalization") or "exp_series"],
        terms=options.get("series_terms") or 16,
        symmetric="outproj_bias" not in named,
        weights="none" if weight is None else "zeros",
        blocks=1 if weight is None else weight.shape[1],
    )
    names = {"lambdas": "eigenvalues", "inward": "inproj", "outward": "outproj"}
    return module, {ours: gate(named, theirs) for ours, theirs in names.items() if f"{theirs}_bias" in named}


def layer1d(options: dict, inputs: dict, params: dict) -> dict:
    """The mixer on x [B, T, D]; parameters `p.<name>` in the layout of the reference."""
    named = {name.removeprefix("p."): jnp.asarray(a) for name, a in params.items()}
    parts = {name: {} for name in ("source", "transition", "mark", "direct")}
    for name, a in named.items():
        part, own = name.split(".", 1)
        if part in parts:
            parts[part][own] = a
    x = jnp.asarray(inputs["x"])
    inner, tree = transition(options, parts["transition"])
    maps = {"q": "query", "k": "key", "v": "value_"}
    tree = {"transition": tree, "out": {"kernel": named["outprojection.weight"].T[None]}}
    tree |= {ours: projection(named, theirs) for ours, theirs in maps.items() if f"{theirs}.weight" in named}
    tree |= {
        name: gate({f"{name}_{own}": a for own, a in parts[name].items()}, name)
        for name in parts
        if name != "transition"
    }
    if "mhnorm.scale" in named:
        tree["out_norm"] = {"scale": named["mhnorm.scale"].reshape(options["num_heads"], -1)}
    source, mark = parts["source"]["bias"], parts["mark"]["bias"]
    reading = [letter for letter, name in zip("STMD", parts, strict=True) if f"{name}.weight" in named]
    reading += ["T"] if inner.weights != WEIGHTS[0] else []
    mixer = Mixer(
        width=x.shape[-1],
        heads=options["num_heads"],
        dtype=x.dtype,
        **dict(zip(("JT", "JK", "JV"), source.shape[1:], strict=True)),
        **dict(zip(("JO", "JQ"), mark.shape[1:3], strict=True)),
        DK=named["query.weight"].shape[1],
        DV=named["value_.weight"].shape[1],
        gate_inputs="".join(reading),
        eigenvalues=inner.eigenvalues,
        factor=inner.factor,
        orthogonal=inner.orthogonal,
        terms=inner.terms,
        symmetric=inner.symmetric and inner.JT > 1,
        blocks=named["query.weight"].shape[3],
        tie_query_key="key.weight" not in named,
        short_conv=bool(options.get("convolution")),
        passthrough=bool(options.get("passthrough")),
        norm="mhnorm.scale" in named,
        norm_eps=options.get("norm_eps") or 1e-5,
    )
    if mixer.passthrough:
        tree["through"] = named["passthrough.scale"]
    return {"out": jax.jit(mixer.apply)({"params": tree}, x)[0]}


def projection(named: dict, name: str) -> dict:
    """Weight [heads / blocks, D', J, blocks, D / blocks] and bias [heads, D', J] as ours."""
    weight, bias = named[f"{name}.weight"], named.get(f"{name}.bias")
    per, channels, J, blocks, width = weight.shape
    assert per == 1, "blocks of the reference that serve several heads interleave them"
    tree = {"kernel": weight[0].transpose(2, 3, 0, 1).reshape(blocks, width, channels * J)}
    return tree if bias is None else tree | {"bias": bias.reshape(-1)}


def gate(named: dict, name: str) -> dict:
    """A gate's `bias` and `weight` [heads / blocks, blocks, ..., D / blocks] as ours."""
    tree = {"bias": named[f"{name}_bias"]}
    if (weight := named.get(f"{name}_weight")) is not None:
        assert weight.shape[1] == 1, "block-diagonal gates of the reference interleave heads"
        tree["map"] = {"kernel": weight.reshape(-1, weight.shape[-1]).T[None]}
    return tree


KINDS = {"core1d": core1d, "orthogonalize": orthogonalize, "transition_layer": transition_layer, "layer1d": layer1d}
