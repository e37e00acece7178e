"""The vision transformer: its attention, its sizes, positions at other sizes, and what all models of images share."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paperlab.errors import ConfigError
from paperlab.layers.patches import PatchEmbedding, bicubic, pool, resized
from paperlab.layers.residual import drop_path
from paperlab.models import vit
from paperlab.papers.plstm import vision
from tests.models.images import IMAGES, logits, parameters

assert_near = partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5)


def build(classes=5, **options):
    small = {"patch": 2, "width": 12, "heads": 3, "depth": 2, "ffn_multiple": 8}
    return vit.make({"model": {**vit.DEFAULTS, **small, **options}}, classes)


def layer_norm(z, scale):
    z = z - z.mean(-1, keepdims=True)
    return z / np.sqrt((z**2).mean(-1, keepdims=True) + 1e-6) * scale["scale"] + scale["bias"]


def test_it_is_the_equations():
    """Patches, positions, class token, blocks of attention and MLP, head, written out."""
    model = build(layer_scale=0.5)
    own = jax.tree.map(np.asarray, parameters(model)["params"])
    x = np.asarray(IMAGES)
    cut = [x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].reshape(2, -1) for i in range(2) for j in range(3)]
    z = np.stack(cut, 1) @ own["patch"]["kernel"] + own["patch"]["bias"]
    z = z + own["position"]["table"].reshape(1, 6, 12)
    z = np.concatenate([np.broadcast_to(own["class_token"], (2, 1, 12)), z], 1)
    for i in range(2):
        p = jax.tree.map(lambda a, i=i: a[i], own["blocks"]["attention"])
        h = layer_norm(z, p["mixer_norm"])
        q, k, v = (
            (h @ p["mixer"][n]["kernel"] + p["mixer"][n]["bias"]).reshape(2, 7, 3, 4).swapaxes(1, 2) for n in "qkv"
        )
        weights = np.exp(q @ k.swapaxes(-1, -2) / 2)
        mixed = (weights / weights.sum(-1, keepdims=True) @ v).swapaxes(1, 2).reshape(2, 7, 12)
        mixed = mixed @ p["mixer"]["out"]["kernel"] + p["mixer"]["out"]["bias"]
        z = z + p["mixer_scale"]["scale"] * mixed
        h = layer_norm(z, p["ffn_norm"]) @ p["ffn"]["up"]["kernel"] + p["ffn"]["up"]["bias"]
        h = np.asarray(jax.nn.gelu(h, approximate=False)) @ p["ffn"]["down"]["kernel"] + p["ffn"]["down"]["bias"]
        z = z + p["ffn_scale"]["scale"] * h
    want = layer_norm(z, own["final_norm"])[:, 0] @ own["head"]["kernel"] + own["head"]["bias"]
    assert_near(logits(model, parameters(model), IMAGES), want)


@pytest.mark.parametrize(("width", "heads", "count"), [(192, 3, 5717416), (384, 6, 22050664), (768, 12, 86567656)])
def test_published_sizes(width, heads, count):
    """DeiT-T, S and B; theirs also give the class token a position."""
    model = vit.make({"model": {**vit.DEFAULTS, "width": width, "heads": heads}}, 1000)
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    assert sum(a.size for a in jax.tree.leaves(shapes)) + width == count


def test_bicubic_weights():
    """Those of torch's interpolate(mode="bicubic", align_corners=False), whose kernel has a = -0.75."""
    double = bicubic(6, 12)
    np.testing.assert_allclose(double[6, 1:5], [-0.03515625, 0.26171875, 0.87890625, -0.10546875])
    np.testing.assert_allclose(double[5, 1:5], [-0.10546875, 0.87890625, 0.26171875, -0.03515625])
    np.testing.assert_allclose(bicubic(5, 13).sum(1), 1)
    np.testing.assert_allclose(bicubic(4, 4), np.eye(4))
    np.testing.assert_allclose(double[0], [0.87890625 + 0.26171875 - 0.03515625, -0.10546875, 0, 0, 0, 0])
    table = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 2)), jnp.float32)
    want = np.einsum("ax,by,xyd->abd", bicubic(3, 7), bicubic(4, 5), table)
    assert_near(resized(table, (7, 5)), want)
    assert resized(table, (3, 4)) is table


@pytest.mark.parametrize("pooling", ["cls", "mean", "corners"])
def test_other_sizes_than_those_of_the_start(pooling):
    model = build(pooling=pooling)
    large = jnp.tile(IMAGES, (1, 2, 2, 1))
    assert logits(model, parameters(model), large).shape == (2, 5)
    resized_by_hand = jax.tree.map(lambda a: a, parameters(model))
    resized_by_hand["params"]["position"]["table"] = resized(parameters(model)["params"]["position"]["table"], (4, 6))
    assert_near(logits(model, resized_by_hand, large), logits(model, parameters(model), large))


def test_pooling():
    x = jnp.arange(2 * 3 * 4 * 1.0).reshape(2, 3, 4, 1)
    np.testing.assert_array_equal(pool(x, "corners")[0], [0, 8, 3, 11])
    np.testing.assert_array_equal(pool(x, "centre")[0], [6])
    np.testing.assert_allclose(pool(x, "mean")[1], [17.5])
    np.testing.assert_allclose(pool(x, "sum")[0], [66])
    with pytest.raises(ValueError, match="'max'"):
        pool(x, "max")


def test_whole_rows_of_a_branch_are_dropped():
    x = jnp.ones((4000, 3))
    dropped = np.asarray(drop_path(x, 0.25, jax.random.key(0)))
    assert set(np.unique(dropped)) == {0.0, np.float32(1 / 0.75)}
    assert (dropped == dropped[:, :1]).all()
    assert (dropped[:, 0] == 0).mean() == pytest.approx(0.25, abs=0.03)
    assert drop_path(x, 0.25, None) is x
    np.testing.assert_allclose(build(depth=5, drop_path=0.4).drop_rates(), [0.4] * 5)
    rising = build(depth=5, drop_path=0.4, drop_path_linear=True)
    np.testing.assert_allclose(rising.drop_rates(), [0, 0.1, 0.2, 0.3, 0.4])
    params = parameters(build(depth=5))
    assert_near(logits(rising, params, IMAGES), logits(build(depth=5), params, IMAGES))
    changed = logits(rising, params, IMAGES, {"dropout": jax.random.key(0)})
    assert not np.allclose(changed, logits(rising, params, IMAGES))


def test_patches_of_one_are_a_map_of_every_cell():
    x = jnp.ones((1, 2, 3, 4))
    layer = PatchEmbedding(1, 5)
    params = layer.init(jax.random.key(0), x)
    want = params["params"]["kernel"].sum(0)
    np.testing.assert_allclose(layer.apply(params, x), np.broadcast_to(want, (1, 2, 3, 5)), rtol=1e-6)


@pytest.mark.parametrize("block", ["attention", "post_up", "pre_up"])
def test_sharding_rules_name_every_matrix(block):
    if block == "attention":
        model = build()
    else:
        small = {"patch": 2, "width": 12, "heads": 3, "depth": 2, "ffn_multiple": 8, "block": block}
        model = vision.make({"model": {**vision.DEFAULTS, **small}}, 5)
    shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGES[:1])
    names = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(shapes)
    ]
    kernels = [n for n in names if n.endswith("kernel") and "/map/" not in n]
    rules = [re.compile(rule) for rule, _ in model.sharding()]
    assert [n for n in kernels if not any(rule.search(n) for rule in rules)] == []
    assert len(kernels) > 5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"heads": 5}, "heads=5 must divide config.model.width=12"),
        ({"pooling": "max"}, "pooling='max'"),
        ({"norm": "batch"}, "norm='batch'"),
        ({"drop_path": 1.0}, "drop_path=1.0"),
        ({"dtype": "int8"}, "dtype='int8'"),
        ({"activation": "step"}, "activation='step'"),
        ({"attention_impl": "fast"}, "attention_impl='fast'"),
        ({"depth": 0}, "depth=0"),
    ],
)
def test_what_is_asked_wrongly_is_named_in_one_line(options, words):
    with pytest.raises(ConfigError, match=words) as caught:
        build(**options)
    assert "\n" not in str(caught.value)
    assert "config.model." in str(caught.value)
