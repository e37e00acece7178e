"""Known answers of SReT: projection, group attention, block, stage, network, distillation.

Weights come under torch's names: linear maps [out, in], convolutions [out, in / groups, x, y].
"""

import jax
import jax.numpy as jnp
import numpy as np

from paperlab.layers.projection import Projection
from paperlab.papers.sret.attention import GroupAttention
from paperlab.papers.sret.network import SReT
from paperlab.papers.sret.stage import Block, Pass, Stage
from paperlab.tasks.distillation import soft_cross_entropy


def projection(options: dict, inputs: dict, params: dict) -> dict:
    """The layer after every application."""
    own = _projection(_named(params))
    module = Projection(options["dim"], own["ffn"]["up"]["bias"].size, dtype=inputs["x"].dtype)
    return {"out": module.apply({"params": own}, inputs["x"])}


def group_attention(options: dict, inputs: dict, params: dict) -> dict:
    """First and second pass, and the gradient of the first."""
    x, own = jnp.asarray(inputs["x"]), {"params": _attention(_named(params))}
    module = GroupAttention(x.shape[-1], options["heads"], x.dtype)
    first, second = options["groups"]
    order = jnp.asarray(inputs["perm"]) if options["permute_second"] else None
    out, back = jax.vjp(lambda x: module.apply(own, x, first), x)
    return {"out_first": out, "out_second": module.apply(own, x, second, order), "grad_x_first": back(inputs["cot"])[0]}


def block(options: dict, inputs: dict, params: dict) -> dict:
    """The same block with the groups of either pass."""
    x, own = jnp.asarray(inputs["x"]), _block(_named(params))
    module = Block(x.shape[-1], options["heads"], own["ffn"]["up"]["bias"].size, dtype=x.dtype)
    first, second = options["groups"]
    order = jnp.asarray(inputs["perm"]) if options["permute_second"] else None
    apply = module.apply
    return {"out_first": apply({"params": own}, x, first), "out_second": apply({"params": own}, x, second, order)}


def stage(options: dict, inputs: dict, params: dict) -> dict:
    """Channels first, as torch has them."""
    x = jnp.moveaxis(jnp.asarray(inputs["x"]), 1, -1)
    B, X, Y, C = x.shape
    K, loops = options["unique_blocks"], options["loops"]
    own = _stage(_named(params), K, loops)
    passes = tuple(Pass(g, b > 0 and options["permute_second"]) for b, g in enumerate(options["groups"]))
    hidden, narrow = (own[part]["ffn"]["up"]["bias"].shape[-1] for part in ("blocks", "projections"))
    module = Stage(C, options["heads"], K, passes, hidden, narrow, dtype=x.dtype)
    out = module.apply({"params": own}, x.reshape(B, X * Y, C), _orders(inputs["perms"], X * Y))
    return {"out": jnp.moveaxis(out.reshape(B, X, Y, C), -1, 1)}


def network(options: dict, inputs: dict, params: dict) -> dict:
    """The whole network with the running statistics, sliced or not."""
    a = _named(params)
    dims = tuple(base * heads for base, heads in zip(options["base_dims"], options["heads"], strict=True))
    unique, depth = options["unique_blocks"], options["depth"]
    none = [1] * len(dims)
    sliced = options.get("sliced", True)
    groups = [options[name] if sliced else none for name in ("groups_first", "groups_second")]
    model = SReT(
        options["num_classes"],
        dims=dims,
        heads=tuple(options["heads"]),
        depth=tuple(depth),
        unique=tuple(unique),
        groups=tuple(",".join(map(str, g)) for g in groups),
        ffn_ratio=options["mlp_ratio"],
        nll_ratio=options["nll_ratio"],
        stride=options["stem_stride"],
        dtype=inputs["x"].dtype,
    )
    own: dict = {"position": {"table": jnp.moveaxis(a["pos_embed"][0], 0, -1)}, "norm": _norm(a, "norm")}
    own["head"] = _linear(a, "head")
    statistics = {}
    for i in range(3):
        own[f"stem_{i}"] = _conv(a, f"patch_embed.conv{i + 1}")
        own[f"stem_norms_{i}"] = _norm(a, f"patch_embed.bn{i + 1}")
        mean, var = (a[f"patch_embed.bn{i + 1}.running_{name}"] for name in ("mean", "var"))
        statistics[f"stem_norms_{i}"] = {"mean": mean, "var": var}
    for s in range(len(dims)):
        own[f"stages_{s}"] = _stage(_below(a, f"transformers.{s}."), unique[s], depth[s] // unique[s])
        if s:
            own[f"pools_{s - 1}"] = _conv(a, f"pools.{s - 1}.conv")
    x = jnp.moveaxis(jnp.asarray(inputs["x"]), 1, -1)
    orders = {}
    for s, grid in enumerate(model.grids(x.shape[1:3])):
        name = f"perms_N{grid[0] * grid[1]}"
        if name in inputs and s in (options.get("permuted_stages") or ()):
            orders[s] = _orders(inputs[name], grid[0] * grid[1])
    return {"out": jax.jit(model.apply)({"params": own, "batch_stats": statistics}, x, orders=orders)}


def kd_loss(options: dict, inputs: dict, params: dict) -> dict:
    """The mean over rows."""
    losses = soft_cross_entropy(inputs["student_logits"], inputs["teacher_logits"], options.get("temperature", 1.0))
    return {"loss": losses.mean()}


def _named(params: dict) -> dict:
    return {name.split("/")[-1]: jnp.asarray(x) for name, x in params.items()}


def _below(a: dict, prefix: str) -> dict:
    return {name.removeprefix(prefix): x for name, x in a.items() if name.startswith(prefix)}


def _linear(a: dict, name: str) -> dict:
    return {"kernel": a[f"{name}.weight"].T, "bias": a[f"{name}.bias"]}


def _conv(a: dict, name: str) -> dict:
    return {"kernel": a[f"{name}.weight"].transpose(2, 3, 1, 0), "bias": a[f"{name}.bias"]}


def _norm(a: dict, name: str) -> dict:
    return {"scale": a[f"{name}.weight"], "bias": a[f"{name}.bias"]}


def _perceptron(a: dict) -> dict:
    return {"up": _linear(a, "mlp.fc1"), "down": _linear(a, "mlp.fc2")}


def _coefficients(a: dict, count: int) -> jax.Array:
    return jnp.concatenate([a[f"coefficient{i + 1}.bias"] for i in range(count)])


def _projection(a: dict) -> dict:
    return {"residual": _coefficients(a, 2), "norm": _norm(a, "norm1"), "ffn": _perceptron(a)}


def _attention(a: dict) -> dict:
    return {"qkv": _linear(a, "qkv"), "out": _linear(a, "proj")}


def _block(a: dict) -> dict:
    norms = {"mixer_norm": _norm(a, "norm1"), "ffn_norm": _norm(a, "norm2")}
    return {"residual": _coefficients(a, 4), "mixer": _attention(_below(a, "attn.")), "ffn": _perceptron(a), **norms}


def _stage(a: dict, unique: int, loops: int) -> dict:
    """Block u is `blocks.{2 loops u}`, the projection of its pass b the entry after it, two further for each pass."""
    stack = lambda trees: jax.tree.map(lambda *x: jnp.stack(x), *trees)  # noqa: E731
    first = [2 * loops * u for u in range(unique)]
    blocks = stack([_block(_below(a, f"blocks.{i}.")) for i in first])
    after = [stack([_projection(_below(a, f"blocks.{i + 2 * b + 1}.")) for b in range(loops)]) for i in first]
    return {"blocks": blocks, "projections": stack(after)}


def _orders(perms: np.ndarray, N: int) -> jax.Array:
    """[K, 2, N]: the first pass as it comes."""
    plain = np.broadcast_to(np.arange(N), perms.shape)
    return jnp.asarray(np.stack([plain, perms], 1))


KINDS = {
    "non_proj": projection,
    "group_attention": group_attention,
    "block": block,
    "stage": stage,
    "network": network,
    "kd_loss": kd_loss,
}


def run(kind: str, options: dict, inputs: dict, params: dict) -> dict:
    """Every array that a case of SReT may ask for."""
    if kind not in KINDS:
        raise ValueError(f"sret: unknown kind {kind!r}")
    return KINDS[kind](options, inputs, params)
