"""Known answers of pLSTM on grids: the core, four directions, the layer, the vision model, receptive fields."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from paperlab.papers.plstm.directions import read_grid
from paperlab.papers.plstm.layer2d import GATES as LETTERS
from paperlab.papers.plstm.layer2d import OPTIONS, Layer2D
from paperlab.papers.plstm.vision import PlstmVision
from paperlab.recurrence.grid import Edges, Gates, four_directions, gating, grid_memory

GATES = ("S0_r", "S0_d", "T0_rl", "T0_ru", "T0_dl", "T0_du", "M0_l", "M0_u")


def core(options: dict, inputs: dict, params: dict) -> dict:
    """Outputs from zero and given borders, gradients of sum(w * out), G."""
    a = {name: jnp.asarray(x) for name, x in inputs.items()}
    scale, chunk = options.get("score_scale"), 1 << (options.get("chunk_levels") or 0)

    def out(a: dict, entering: Edges | None, impl: str) -> tuple[Array, Edges]:
        arrays = (a["Q"], a["K"], a["V"], _gates(a), a.get("D0"))
        return grid_memory(*arrays, entering=entering, scale=scale, impl=impl, chunk=chunk)

    found = {"out": out(a, None, "hierarchical")[0]}
    if "C_left" in a:
        after, leaving = out(a, Edges(a["C_left"], a["C_top"]), "wavefront")
        found |= {"out_from_C": after, "C_right_last": leaving.vertical, "C_bottom_last": leaving.horizontal}
    if "w" in a:
        drawn = {name: x for name, x in a.items() if name in ("Q", "K", "V", "D0", *GATES)}
        gradients = jax.jit(jax.grad(lambda d: (a["w"] * out(d, None, "hierarchical")[0]).sum()))(drawn)
        found |= {f"grad_{name}": g for name, g in gradients.items()}
    return {**found, "G_nodirect": _to_from(gating(_gates(a)))}


def fused(options: dict, inputs: dict, params: dict) -> dict:
    """Four directions summed; gates [B, directions, X, Y, ...]."""
    a = {name: jnp.asarray(x) for name, x in inputs.items()}
    gates = Gates(*(None if g is None else g[:, None] for g in _gates(a)))
    q, k, v, direct = (a[name][:, None] for name in ("Q", "K", "V", "D0"))
    factor = options["score_scale"] * q.shape[-2] ** 0.5 if options.get("score_scale") else 1.0
    out = read_grid(factor * q, k, v, gates, direct)[:, 0]
    each = [Gates(*(None if g is None else g[:, i] for g in _gates(a))) for i in range(4)]
    return {"out": out, "G": _to_from(four_directions(each, a["D0"]))}


def layer(options: dict, inputs: dict, params: dict) -> dict:
    """The whole layer on x [B, X, Y, D]."""
    own = {name.removeprefix("p."): jnp.asarray(a) for name, a in params.items()}
    x = jnp.asarray(inputs["x"])
    module, weights = _layer(options, own, x.shape[-1], options.get("mode"))
    return {"out": jax.jit(module.apply)({"params": weights}, x)}


def vision(options: dict, inputs: dict, params: dict) -> dict:
    """The tiny vision model, its stations, and its logits on larger images."""
    own = {name.removeprefix("p."): jnp.asarray(a) for name, a in params.items()}
    modes = options["blocks"]
    blocks: dict[str, list] = {}
    layer_options: tuple = ()
    for i, mode in enumerate(modes):
        part = _below(own, f"block_stack.blocks.{i // 2}.block{i % 2}.")
        module, weights = _layer(options, _below(part, "interaction_module."), own["norm.scale"].shape[0], mode)
        blocks.setdefault(mode, []).append(_block(part, weights))
        letters = "".join(dict.fromkeys(dict(layer_options).get("gate_inputs", "") + module.gate_inputs))
        layer_options = (*((name, getattr(module, name)) for name in OPTIONS), ("gate_inputs", letters))
    head = own["head.weight"]
    model = PlstmVision(
        head.shape[0],
        patch=options["patch"],
        width=own["norm.scale"].shape[0],
        depth=len(modes),
        heads=options["num_heads"],
        position="learned" if options.get("position_embedding") else "none",
        pooling="corners",
        norm_eps=options.get("norm_eps") or 1e-5,
        activation=options.get("mlp_activation") or "gelu_erf",
        layers="".join(modes[:2]),
        layer_options=layer_options,
    )
    kernel = own["patch_embed.proj.weight"].transpose(2, 3, 1, 0)
    weights = {
        "patch": {"kernel": kernel.reshape(-1, kernel.shape[-1]), "bias": own["patch_embed.proj.bias"]},
        "blocks": {mode: jax.tree.map(lambda *a: jnp.stack(a), *parts) for mode, parts in blocks.items()},
        "final_norm": {"scale": own["norm.scale"]},
        "head": {"kernel": head.T, "bias": own["head.bias"]},
    }
    if options.get("position_embedding"):
        weights["position"] = {"table": own["pos_embed.embed"][0]}
    return _stations(model, {"params": weights}, {name: jnp.asarray(x) for name, x in inputs.items()}, modes)


def _stations(model: PlstmVision, variables: dict, inputs: dict, modes: list) -> dict:
    """What stands after the patches, the positions, the first block of each mode, and the logits."""
    x, apply = inputs["x"], jax.jit(model.apply, static_argnames="method")
    found = {"patches": model.apply(variables, x, method=lambda m, x: m.patches(x))}
    z = found["after_pos"] = model.apply(variables, x, method="embed")
    seen: dict[str, int] = {}
    for mode in modes:
        number = seen.get(mode, 0)
        one = jax.tree.map(lambda a, i=number: a[i], variables["params"]["blocks"][mode])
        z = jax.jit(model.block(mode).apply)({"params": one}, z)
        found.setdefault(f"after_{mode}_block", z)
        seen[mode] = number + 1
    found["logits"] = apply(variables, x)
    return found | ({"logits_large": apply(variables, inputs["x_large"])} if "x_large" in inputs else {})


def receptive(options: dict, inputs: dict, params: dict) -> dict:
    """Responses of all nodes to one source at the first, with the same gates everywhere."""
    X, Y = options["grid"]

    def field(s_r, s_d, rl, ru, dl, du) -> Array:
        full = [None if g is None else jnp.broadcast_to(g, (X, Y, 1, 1)) for g in (rl, ru, dl, du)]
        s_r, s_d, mark = (jnp.broadcast_to(g, (X, Y, 1, 1, 1)) for g in (s_r, s_d, jnp.ones(())))
        x, y = options.get("source_node") or (0, 0)
        return gating(Gates(s_r, s_d, *full, mark, mark))[:, :, x, y, 0, 0, 0, 0] * (options.get("score_scale") or 1.0)

    def p(alpha: Array, gamma: Array) -> Array:
        return field(alpha, 1 - alpha, gamma * alpha, gamma * alpha, gamma * (1 - alpha), gamma * (1 - alpha))

    def d(gamma: Array) -> Array:
        left = options.get("chirality", "L") == "L"
        return field(jnp.ones(()), jnp.ones(()), gamma, gamma if left else None, None if left else gamma, gamma)

    alphas, gammas = (jnp.asarray(inputs[name]) for name in ("alphas", "gammas"))
    rows = [jnp.stack([p(a, g) for g in gammas]) for a in alphas]
    return {"P_field": jnp.stack(rows), "D_field": jnp.stack([d(g) for g in gammas])}


KINDS: dict[str, Callable[[dict, dict, dict], dict]] = {
    "core2d": core,
    "fused4": fused,
    "layer2d": layer,
    "vision_model": vision,
    "receptive_field_2d": receptive,
}


def _gates(a: dict) -> Gates:
    return Gates(*(a.get(name) for name in GATES))


def _to_from(G: Array) -> Array:
    """[..., X, Y, X, Y, J ...] -> [..., x to, x from, y to, y from, J ...]."""
    return G.swapaxes(-7, -6)


def _below(own: dict, prefix: str) -> dict:
    return {name.removeprefix(prefix): a for name, a in own.items() if name.startswith(prefix)}


def _block(own: dict, mixer: dict) -> dict:
    """Weights of one ResidualBlock."""
    ffn = {
        ours: {"kernel": own[f"{name}.weight"].T, "bias": own[f"{name}.bias"]}
        for ours, name in (("up", "upproj"), ("down", "downproj"))
    }
    norms = {"mixer_norm": {"scale": own["norm.scale"]}, "ffn_norm": {"scale": own["norm2.scale"]}}
    scales = {"mixer_scale": "scale1.scale", "ffn_scale": "scale2.scale"}
    return {"mixer": mixer, "ffn": ffn, **norms} | {o: {"scale": own[n]} for o, n in scales.items() if n in own}


def _layer(options: dict, own: dict, width: int, mode: str) -> tuple[Layer2D, dict]:
    """The layer of a case, and its weights under our names."""
    heads = options["num_heads"]
    first = "source" if mode == "P" else "source_r"
    _, JT, JK, JV = own[f"{first}.bias"].shape
    _, JO, JQ, _ = own["mark.bias" if mode == "P" else "mark_l.bias"].shape
    names = {"S": first, "T": "transition" if mode == "P" else "transition_r", "M": "mark" if mode == "P" else "mark_l"}
    names |= {"D": "direct", "O": "orientation_weight"}
    module = Layer2D(
        width,
        heads,
        mode,
        chirality=options.get("chirality") or "L",
        pmode=options.get("pmode_rule") or "reference",
        gate_inputs="".join(c for c in LETTERS if any(n.startswith(names[c]) and "weight" in n for n in own)),
        JT=JT,
        JK=JK,
        JV=JV,
        JQ=JQ,
        JO=JO,
        eigenvalues=options.get("eigenvalue_activation") or "tanh",
        eigenvalue_factor=options.get("eigenvalue_factor") or 5.0,
        conv_width=own["convolution._conv.weight"].shape[-1] if "convolution._conv.weight" in own else 0,
        passthrough="passthrough.scale" in own,
        norm_eps=options.get("norm_eps") or 1e-5,
    )
    weights = {ours: _map(own[f"{n}.weight"], own[f"{n}.bias"]) for ours, n in PROJECTIONS.items()}
    weights |= {
        "head_norm": {"scale": own["mhnorm.scale"].reshape(heads, -1)},
        "out": {"kernel": own["outprojection.weight"].T[None]},
        "direct": _gate(own, "direct", None),
    }
    by_direction = options.get("gate_index") or "head*4 + direction"
    if mode == "P":
        weights["orientation"] = _orientation(options, own, by_direction, width)
    for name in ("source", "mark") if mode == "P" else ("source_r", "source_d", "mark_l", "mark_u"):
        weights[name] = _gate(own, name, by_direction)
    turns = {"transition": "transition"} if mode == "P" else {f"transition_{o}": f"transition_{n}" for o, n in TURNS}
    for ours, name in turns.items():
        found = {
            o: _gate(own, f"{name}.{n}_", by_direction, flat=True) for o, n in TRANSITION if f"{name}.{n}_bias" in own
        }
        weights[ours] = found
    if module.conv_width:
        kernel = own["convolution._conv.weight"][:, 0].transpose(1, 2, 0)[::-1, ::-1]
        weights["convolution"] = {"kernel": kernel, "bias": own["convolution._conv.bias"]}
    if module.passthrough:
        weights["through"] = {"scale": own["passthrough.scale"]}
    return module, weights


PROJECTIONS = {"q": "query", "k": "key", "v": "value_"}
TURNS = (("r", "r"), ("d", "d"), ("turn", "rd"))
TRANSITION = (("lambdas", "eigenvalues"), ("inward", "inproj"), ("outward", "outproj"))


def _dense(weight: Array) -> Array:
    """[n / sub, sub, J ..., D / sub], output h * sub + s reading part s of the channels -> [D, n, J ...]."""
    high, sub, *J, d = weight.shape
    spread = jnp.einsum("hs...d,st->hs...td", weight, jnp.eye(sub))
    return jnp.moveaxis(spread.reshape(high * sub, *J, sub * d), -1, 0)


def _map(weight: Array, bias: Array) -> dict:
    """[H / sub, DK, J, sub, D / sub] -> a map of one block, outputs in the order head, DK, J."""
    dense = _dense(jnp.moveaxis(weight, 3, 1))
    return {"kernel": dense.reshape(1, dense.shape[0], -1), "bias": bias.reshape(-1)}


def _gate(own: dict, name: str, index: str | None, flat: bool = False) -> dict:
    """One gate; the 4 * heads of index `n` become [heads, 4] (or stay one axis, head first, where `flat`)."""
    dot = "" if name.endswith("_") else "."

    def arranged(a: Array, axis: int) -> Array:
        if index is None:
            return a
        shape = a.shape
        if index.startswith("head"):
            a = a.reshape(*shape[:axis], -1, 4, *shape[axis + 1 :])
        else:
            a = a.reshape(*shape[:axis], 4, -1, *shape[axis + 1 :]).swapaxes(axis, axis + 1)
        return a.reshape(shape) if flat else a

    found = {"bias": arranged(own[f"{name}{dot}bias"], 0)}
    if f"{name}{dot}weight" in own:
        dense = arranged(_dense(own[f"{name}{dot}weight"]), 1)
        found["map"] = {"kernel": dense.reshape(1, dense.shape[0], -1)}
    return found


def _orientation(options: dict, own: dict, index: str, width: int) -> dict:
    """The orientations [4, heads] as the gates of index `n` meet them, as [heads, 4]."""

    def arranged(a: Array) -> Array:
        straight = (options.get("orientation_index") or "direction*heads + head").startswith("direction")
        a = (a if straight else a.swapaxes(0, 1)).reshape(-1, *a.shape[2:])
        return (
            a.reshape(-1, 4, *a.shape[1:])
            if index.startswith("head")
            else a.reshape(4, -1, *a.shape[1:]).swapaxes(0, 1)
        )

    found = {"bias": arranged(own["orientation_bias"])}
    if "orientation_weight" in own:
        factor = (0.5 if options.get("orientation_scale") is None else options["orientation_scale"]) / 0.5
        kernel = factor * arranged(own["orientation_weight"])
        found["map"] = {"kernel": kernel.reshape(-1, width).T[None]}
    return found
