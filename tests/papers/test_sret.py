"""SReT: published sizes, slicing and its inverse, sharing, coefficients, the network with its statistics, what is refused."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paperlab.config import load_experiment, resolve
from paperlab.discovery import find
from paperlab.errors import ConfigError
from paperlab.layers.projection import Projection
from paperlab.papers.sret import numerics
from paperlab.papers.sret.attention import LAYOUTS, GroupAttention, order_of
from paperlab.papers.sret.convolution import HOW, Convolution
from paperlab.papers.sret.network import SReT
from paperlab.papers.sret.stage import Block, Pass, Stage, passes_of
from tests.recurrence.laws import QUICK

X = np.random.default_rng(0).normal(size=(2, 24, 8))
N = X.shape[1]
SMALL = {"dims": (4, 8), "heads": (2, 2), "depth": (4, 2), "unique": (2, 1), "groups": ("4,2", "2,1"), "stride": 2}
IMAGES = np.random.default_rng(1).normal(size=(3, 8, 8, 3)).astype(np.float32)
assert_close = partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-10)


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def drawn(module, *inputs, seed=0):
    """Every parameter drawn, LRC scalars too."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: 0.5 * rng.normal(size=a.shape), shapes)


def made(module, seed=0):
    return module, drawn(module, X, seed=seed)


@pytest.mark.parametrize("name", numerics.SIZES)
def test_parameters_of_the_published_sizes(name):
    with jax.enable_x64(False):
        assert numerics.parameters(name) == numerics.SIZES[name][2]


def test_lt_prime_has_the_parameters_of_lt():
    def count(**options):
        with jax.enable_x64(False):
            shapes = jax.eval_shape(SReT(1000, **options).init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
        return sum(x.size for x in jax.tree.leaves(shapes["params"]))

    assert count(ffn_ratio=4.0, groups=("16,14,1", "1,1,1")) == count(ffn_ratio=4.0) == 4_988_024


@pytest.mark.parametrize(("groups", "stride", "side"), [(1, 1, 8), (1, 2, 9), (4, 2, 8)])
def test_convolutions_over_patches_are_convolutions(groups, stride, side):
    x = np.random.default_rng(2).normal(size=(2, side, side, 4))
    xla, patches = (Convolution(8, stride, groups, how, jnp.float64) for how in HOW)
    params = drawn(xla, x)
    assert_close(patches.apply(params, x), xla.apply(params, x))
    slope = lambda module: jax.grad(lambda p: jnp.square(module.apply(p, x)).sum())(params)  # noqa: E731
    jax.tree.map(assert_close, slope(patches), slope(xla))


def test_untied_applications_have_weights_of_their_own():
    with jax.enable_x64(False):
        shapes = jax.eval_shape(SReT(1000, unique=(4, 10, 6)).init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    assert sum(x.size for x in jax.tree.leaves(shapes["params"])) == 7_984_582


def test_products_are_those_of_the_published_tables():
    assert numerics.published_products(None).value < 0.001
    assert numerics.slicing_saves(None).value < 0.0005
    other = SReT(1000, ffn_ratio=4.0, groups=("16,14,1", "1,1,1")).macs((224, 224))
    assert round(other / 1e9, 3) == 1.225


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_order_is_a_permutation_and_its_inverse_gives_back(layout):
    order = order_of(layout, (4, 6), 6)
    if layout == "raster":
        assert order is None
        return
    np.testing.assert_array_equal(np.sort(order), np.arange(N))
    np.testing.assert_array_equal(order[np.argsort(order)], np.arange(N))
    assert order_of(layout, (4, 6), 1) is None


def test_layouts_by_hand():
    np.testing.assert_array_equal(order_of("strided", (1, 6), 3), [0, 3, 1, 4, 2, 5])
    np.testing.assert_array_equal(order_of("windows", (4, 4), 4)[:8], [0, 1, 4, 5, 2, 3, 6, 7])
    np.testing.assert_array_equal(order_of("random", (4, 4), 4, 3), order_of("random", (4, 4), 4, 3))
    with pytest.raises(ConfigError, match=r"7 groups do not divide 16 tokens: choose a divisor of 16"):
        order_of("windows", (4, 4), 7)


def test_groups_attend_to_themselves_alone():
    module, own = made(GroupAttention(8, 2, jnp.float64))
    order = order_of("random", (4, 6), 4, 1)
    seen = np.abs(jax.jacrev(lambda x: module.apply(own, x, 4, order)[0].sum(-1))(X)[:, 0]).max(-1) > 0
    chunk = np.argsort(order) // (N // 4)
    np.testing.assert_array_equal(seen, chunk[:, None] == chunk[None])


def test_slicing_is_full_attention_on_each_chunk():
    module, own = made(GroupAttention(8, 2, jnp.float64))
    order = order_of("random", (4, 6), 3, 2)
    whole = module.apply(own, X, 3, order)
    for chunk in order.reshape(3, -1):
        assert_close(whole[:, chunk], module.apply(own, X[:, chunk]))
    assert_close(module.apply(own, X, 3, jnp.arange(N)), module.apply(own, X, 3))
    assert_close(module.apply(own, X[:, order]), module.apply(own, X)[:, order])


def test_plain_settings_are_a_tied_transformer():
    """Coefficients 1 and projections that add nothing leave the block, applied again and again; one pass a plain stack."""
    stage = Stage(8, 2, 2, (Pass(),) * 3, 12, 8, dtype=jnp.float64)
    own = drawn(stage, X)["params"]
    own["blocks"]["residual"] = jnp.ones_like(own["blocks"]["residual"])
    own["projections"]["residual"] = jnp.tile(jnp.array([1.0, 0.0]), (2, 3, 1))
    block, x = Block(8, 2, 12, lrc=False, dtype=jnp.float64), X
    for u in range(2):
        weights = {k: jax.tree.map(lambda a, u=u: a[u], v) for k, v in own["blocks"].items() if k != "residual"}
        for _ in range(3):
            x = block.apply({"params": weights}, x)
    assert_close(stage.apply({"params": own}, X), x)
    bare = Stage(8, 2, 2, (Pass(),) * 3, 12, 8, lrc=False, nll=False, dtype=jnp.float64)
    left = {"blocks": {k: v for k, v in own["blocks"].items() if k != "residual"}}
    assert_close(bare.apply({"params": left}, X), x)


PASSES = passes_of((4, 2, 2), ("raster", "random"), 3)
ORDERS = jnp.asarray(
    np.stack([np.stack([np.random.default_rng(10 * u + b).permutation(N) for b in range(3)]) for u in range(2)])
)


def unrolled(own, x, once=False):
    """Every application with weights of its own."""
    for u in range(2):
        for b, one in enumerate(PASSES):
            if b == 0 or not once:
                params = jax.tree.map(lambda a, u=u, b=b: a[u, b], own["blocks"])
                order = ORDERS[u, b] if one.ordered else None
                x = Block(8, 2, 12, dtype=jnp.float64).apply({"params": params}, x, one.groups, order)
            weights = jax.tree.map(lambda a, u=u, b=b: a[u, b], own["projections"])
            x = Projection(8, 8, dtype=jnp.float64).apply({"params": weights}, x)
    return x


@pytest.mark.parametrize("once", [False, True])
def test_shared_weights_are_copies_and_their_gradient_is_the_sum(once):
    stage = Stage(8, 2, 2, PASSES, 12, 8, once=once, dtype=jnp.float64)
    own = drawn(stage, X)["params"]
    copies = {**own, "blocks": jax.tree.map(lambda a: jnp.repeat(a[:, None], 3, 1), own["blocks"])}
    value = lambda f: jax.jit(jax.value_and_grad(lambda p: jnp.sin(f(p)).sum()), compiler_options=QUICK)  # noqa: E731
    got, slopes = value(lambda p: stage.apply({"params": p}, X, ORDERS))(own)
    want, each = value(lambda p: unrolled(p, X, once))(copies)
    assert_close(got, want)
    jax.tree.map(assert_close, slopes, {**each, "blocks": jax.tree.map(lambda a: a.sum(1), each["blocks"])})
    assert [tuple(one) for one in PASSES] == [(4, False), (2, True), (2, True)]


def test_slopes_of_the_coefficients_are_those_of_differences():
    stage = Stage(8, 2, 1, PASSES, 12, 8, dtype=jnp.float64)
    own = drawn(stage, X)["params"]
    value = jax.jit(lambda a, c: jnp.sin(stage.apply({"params": _with(own, a, c)}, X, ORDERS[:1])).sum())
    a, c = own["blocks"]["residual"], own["projections"]["residual"]
    slopes = jax.grad(value, (0, 1))(a, c)
    for which, (point, slope) in enumerate(zip((a, c), slopes, strict=True)):
        for index in np.ndindex(point.shape):
            step = np.zeros(point.shape)
            step[index] = 1e-6
            ends = [value(*((point + s, c) if which == 0 else (a, point + s))) for s in (step, -step)]
            np.testing.assert_allclose(slope[index], (ends[0] - ends[1]) / 2e-6, rtol=1e-6, atol=1e-6)


def _with(own, a, c):
    return {
        "blocks": {**own["blocks"], "residual": a},
        "projections": {**own["projections"], "residual": c},
    }


def test_remat_and_long_runs_of_passes_change_nothing():
    many = passes_of((4, 2), ("raster",), 7)
    plain, marked = (Stage(8, 2, 1, many, 12, 8, dtype=jnp.float64, remat=r) for r in (lambda f: f, jax.checkpoint))
    own = drawn(plain, X)
    slopes = [
        jax.jit(jax.grad(lambda p, s=s: s.apply(p, X).sum()), compiler_options=QUICK)(own) for s in (plain, marked)
    ]
    jax.tree.map(assert_close, *slopes)


# the network


def network(**changes):
    return SReT(5, **{**SMALL, **changes})


def test_running_statistics_are_used_and_gathered():
    with jax.enable_x64(False):
        model = network()
        variables = model.init(jax.random.key(0), IMAGES)
        assert set(variables) == {"params", "batch_stats"}
        logits, after = model.apply(variables, IMAGES, train=True, mutable=["batch_stats"])
        first = model.apply(variables, IMAGES, method=lambda m, x: m.stem[0](x))
        found = after["batch_stats"]["stem_norms_0"]["mean"]
        np.testing.assert_allclose(found, 0.1 * first.mean((0, 1, 2)), atol=1e-6)
        alone = model.apply(variables, IMAGES[:1])
        np.testing.assert_allclose(alone, model.apply(variables, IMAGES)[:1], atol=1e-5)
        assert logits.shape == (3, 5)
        assert not np.allclose(logits, model.apply(variables, IMAGES), atol=1e-3)


def test_evaluation_is_a_function_of_the_image_and_training_draws_orders():
    with jax.enable_x64(False):
        model = network()
        variables = model.init(jax.random.key(0), IMAGES)
        np.testing.assert_array_equal(model.apply(variables, IMAGES), model.apply(variables, IMAGES))
        drawn_once, again = (model.apply(variables, IMAGES, rngs={"dropout": jax.random.key(i)}) for i in (1, 2))
        assert not np.array_equal(drawn_once, again)
        fixed = network(layouts=("raster", "strided"))
        same = [fixed.apply(variables, IMAGES, rngs={"dropout": jax.random.key(i)}) for i in (1, 2)]
        np.testing.assert_array_equal(*same)


def test_larger_images_need_no_other_weights():
    with jax.enable_x64(False):
        model = network()
        variables = model.init(jax.random.key(0), IMAGES)
        assert model.apply(variables, np.zeros((1, 16, 16, 3))).shape == (1, 5)


def test_stochastic_depth_rises_with_the_index():
    rates = [network(drop_path=0.6, drop_path_by=by).drop_rates(0) for by in ("block", "application")]
    np.testing.assert_allclose(rates[0], [[0, 0], [0.1, 0.1]], atol=1e-7)
    np.testing.assert_allclose(rates[1], [[0, 0.1], [0.2, 0.3]], atol=1e-7)
    np.testing.assert_allclose(network(drop_path=0.6).drop_rates(1), [[0.4, 0.4]], atol=1e-7)


def test_deep_recursion_is_one_program():
    """A thousand applications, forward and backward, finite."""
    with jax.enable_x64(False):
        stage = Stage(8, 2, 10, (Pass(4),) * 100, 16, 8, remat=jax.checkpoint)
        x = jnp.asarray(X, jnp.float32)
        variables = stage.init(jax.random.key(0), x)
        slopes = jax.jit(jax.grad(lambda v: stage.apply(v, x).sum()), compiler_options=QUICK)(variables)
        assert all(np.isfinite(a).all() for a in jax.tree.leaves(slopes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"depth": "3,2"}, "every depth must be a multiple of its unique blocks"),
        ({"heads": "2"}, "config.model.heads='2': give a number for each stage of dims='4,8', as in '2,4,8'"),
        ({"dims": "4,x"}, "config.model.dims='4,x': give a number for each stage"),
        ({"dims": "4,6"}, "the width of a stage that of the next"),
        ({"groups": ("4;2",)}, "config.model.groups: '4;2' must be 2 numbers, one a stage"),
        ({"layouts": ("spiral",)}, "config.model.layouts: 'spiral' is none; choose from raster"),
        ({"stride": 3}, "config.model.stride=3"),
        (
            {"groups": ("5,1",)},
            "5 groups do not divide the 64 tokens (8 x 8) of stage 0; give it one of 1, 2, 4, 8, 16, 32",
        ),
    ],
    ids=str,
)
def test_what_is_asked_wrongly_is_named_in_one_line(changes, words):
    sizes = {name: ",".join(map(str, SMALL[name])) for name in ("dims", "heads", "depth", "unique")}
    config = load_experiment("experiments/sret.py")
    config.model.update({**SMALL, **sizes, "stride": 1, **changes})
    with jax.enable_x64(False), pytest.raises(ConfigError) as failure:
        logits_of(config)
    assert words in str(failure.value)
    assert "\n" not in str(failure.value)


def logits_of(config):
    task = find("tasks", config.task.name).make(resolve(config))
    batch = task.data("train")[0]
    return task.logits(*task.init(jax.random.key(0), batch), batch["images"])
