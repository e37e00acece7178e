"""pLSTM on grids: four directions, the layer's gates and initialisation, the vision model."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paperlab.errors import ConfigError
from paperlab.layers.grid_convolution import GridConvolution
from paperlab.papers.plstm import vision
from paperlab.papers.plstm.directions import attend_to_all, gates_turned, read_grid, spread, turned
from paperlab.papers.plstm.layer2d import Layer2D
from paperlab.recurrence.grid import Edges, Gates, four_directions, gating, grid_memory
from tests.models.images import IMAGES, logits, parameters
from tests.recurrence.laws import QUICK

assert_close = partial(np.testing.assert_allclose, rtol=0, atol=1e-11)
assert_near = partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5)
J = {"JT": 2, "JO": 1, "JQ": 1, "JK": 2, "JV": 1}
ALL = (0, 1, 2, 3)


def drawn(X, Y, missing=(), J=J, B=2, H=1, seed=0):
    """(q, k, v, gates, direct) for four directions."""
    rng = np.random.default_rng(seed)
    T, source, mark = (J["JT"],) * 2, (J["JT"], J["JK"], J["JV"]), (J["JO"], J["JQ"], J["JT"])
    tails = dict(zip(Gates._fields, (source, source, T, T, T, T, mark, mark), strict=True))
    gates = Gates(
        *(None if n in missing else jnp.asarray(0.6 * rng.normal(size=(B, H, 4, X, Y, *t))) for n, t in tails.items())
    )
    q, k = (jnp.asarray(rng.normal(size=(B, H, X, Y, 3, J[j]))) for j in ("JQ", "JK"))
    v = jnp.asarray(rng.normal(size=(B, H, X, Y, 2, J["JV"])))
    return q, k, v, gates, jnp.asarray(rng.normal(size=(B, H, X, Y, J["JO"], J["JQ"], J["JK"], J["JV"])))


@partial(jax.jit, static_argnames=("impl", "fused", "padding", "chunk"), compiler_options=QUICK)
def read(arguments, impl, fused=True, padding="needed", chunk=2):
    """The result, and gradients of a random linear function of it."""

    def value(arguments):
        out = read_grid(*arguments, impl=impl, fused=fused, padding=padding, chunk=chunk)
        return (out * jnp.cos(jnp.arange(out.size).reshape(out.shape))).sum(), out

    gradients, out = jax.grad(value, has_aux=True)(arguments)
    return out, gradients


quick = partial(jax.jit, compiler_options=QUICK)
out_of = quick(read_grid, static_argnames=("impl", "directions", "fused"))


def reversed_along(x, axes, first):
    return jnp.flip(x, [first + a for a in axes]) if axes else x


def one_by_one(q, k, v, gates, direct):
    """The definition: everything turned by hand, node after node, turned back."""
    each = []
    for i, axes in enumerate([(), (0,), (1,), (0, 1)]):
        arrays = [reversed_along(x, axes, -4) for x in (q, k, v)]
        own = [
            None if g is None else reversed_along(g[:, :, i], axes, -d)
            for g, d in zip(gates, (5, 5, 4, 4, 4, 4, 5, 5), strict=True)
        ]
        out, _ = grid_memory(*arrays, Gates(*own), impl="nodes")
        each.append(reversed_along(out, axes, -4))
    own = jnp.einsum("...oqkl,...dq,...dk,...vl->...vo", direct, q, k, v) * q.shape[-2] ** -0.5
    return jnp.stack(each, 2), own


@pytest.mark.parametrize(("size", "missing"), [((4, 6), ()), ((5, 3), ("dl",))], ids=str)
def test_four_directions_are_flip_run_flip(size, missing):
    with jax.enable_x64(True):
        arguments = drawn(*size, missing)
        each, own = jax.jit(one_by_one, compiler_options=QUICK)(*arguments)
        want, slopes = read(arguments, "nodes")
        assert_close(want, each.sum(2) + own)
        for impl in ("summed", "hierarchical", "wavefront"):
            got, gradients = read(arguments, impl)
            assert_close(got, want)
            jax.tree.map(partial(assert_close, atol=1e-10), gradients, slopes)
        for impl in ("hierarchical", "wavefront"):
            assert_close(read(arguments, impl, fused=False)[0], each + own[:, :, None])


def test_zeros_around_the_grid_change_nothing():
    with jax.enable_x64(True):
        arguments = drawn(5, 3)
        want, slopes = read(arguments, "hierarchical")
        for impl, chunk in (("hierarchical", 2), ("wavefront", 4)):
            got, gradients = read(arguments, impl, padding="power_of_two", chunk=chunk)
            assert_close(got, want)
            jax.tree.map(partial(assert_close, atol=1e-10), gradients, slopes)


def test_the_sum_of_g_reaches_every_node_from_every_node():
    with jax.enable_x64(True):
        q, k, v, gates, direct = drawn(4, 3, J=dict.fromkeys(J, 1), B=1)
        each = [Gates(*(g[0, 0, i] for g in gates)) for i in ALL]
        G = quick(four_directions)(each, direct[0, 0])[..., 0, 0, 0, 0]
        assert (np.abs(G) > 0).all()
        scores = np.einsum("xyd,abd->xyab", q[0, 0, ..., 0], k[0, 0, ..., 0]) * 3**-0.5
        want = np.einsum("xyab,abv->xyv", G * scores, v[0, 0, ..., 0])
        assert_close(out_of(q, k, v, gates, direct, impl="summed")[0, 0, ..., 0], want)


def test_exchanging_x_and_y_exchanges_right_and_down():
    with jax.enable_x64(True):
        q, k, v, gates, direct = drawn(4, 3)
        want = out_of(q, k, v, gates, direct, impl="hierarchical")
        g = Gates(*(jnp.swapaxes(x, 3, 4)[:, :, np.array([0, 2, 1, 3])] for x in gates))
        exchanged = Gates(g.source_d, g.source_r, g.du, g.dl, g.ru, g.rl, g.mark_u, g.mark_l)
        q, k, v, direct = (jnp.swapaxes(x, 2, 3) for x in (q, k, v, direct))
        assert_close(jnp.swapaxes(out_of(q, k, v, exchanged, direct, impl="hierarchical"), 2, 3), want)


def test_turning_twice_is_nothing():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 3, 5, 2, 1)))
    assert_near(turned(turned(x, -4, ALL, of=-5), -4, ALL, of=-5), x)
    assert_near(turned(spread(x[:, 0], -4, ALL), -4, ALL, of=-5), jnp.stack([x[:, 0]] * 4, 1))
    assert not np.allclose(turned(x, -4, ALL, of=-5), x)


X = jnp.asarray(np.random.default_rng(1).normal(size=(2, 4, 6, 12)), jnp.float32)


@cache
def layer(mode="P", **options):
    """A layer with random parameters around their start, and these."""
    module = Layer2D(12, 3, mode, **options)
    rng = np.random.default_rng(2)
    return module, jax.tree.map(lambda a: a + 0.3 * rng.normal(size=a.shape).astype(a.dtype), started(module))


@cache
def started(module):
    """The parameters that training starts from."""
    return quick(module.init)(jax.random.key(0), X[:1, :2, :2])


def run(made, x=X, method=None, **inputs):
    module, params = made
    return _run(module, method, params, x, inputs)


@partial(quick, static_argnums=(0, 1))
def _run(module, method, params, x, inputs):
    return module.apply(params, x, method=method, **inputs)


@pytest.mark.parametrize("pmode", ["paper", "reference"])
def test_p_mode_splits_every_edge_by_its_angle(pmode):
    _, _, _, g, _ = run(layer(pmode=pmode), method="read")
    assert_near(g.rl, g.ru)
    assert_near(g.dl, g.du)
    assert_near(g.mark_l, g.mark_u)
    sums, sources = g.rl + g.dl, g.source_r + g.source_d
    if pmode == "reference":
        assert_near(sums, 1)
        assert_near(sources, 1)
    else:
        assert float(jnp.abs(sums).max()) <= 1
        assert_near(g.rl / sums, g.source_r[..., 0] / sources[..., 0])
        assert 0 < float(sources.min()) < float(sources.max()) < 1


@pytest.mark.parametrize(("chirality", "gone", "kept"), [("L", "dl", "ru"), ("R", "ru", "dl")])
def test_d_mode_leaves_out_one_turn(chirality, gone, kept):
    _, _, _, g, _ = run(layer("D", chirality=chirality), method="read")
    assert getattr(g, gone) is None
    assert len({float(x.sum()) for x in (g.rl, g.du, getattr(g, kept))}) == 3
    assert not np.allclose(g.source_r, g.source_d)
    assert not np.allclose(g.mark_l, g.mark_u)


def test_where_training_starts():
    """Table 4: source and mark at -4, direct at -6, transition tanh(5), orientations spread over the heads; weights zero."""
    module = Layer2D(12, 3)
    params = started(module)
    _, _, _, g, direct = run((module, params), method="read")
    alpha = jax.nn.sigmoid(jnp.array([-2.0, 0.0, 2.0]))
    assert_near(g.rl[..., 0, 0], jnp.broadcast_to(alpha[:, None, None, None] * np.tanh(5), g.rl.shape[:-2]))
    assert_near(g.mark_l, jax.nn.sigmoid(-4.0))
    assert_near(g.source_r + g.source_d, jax.nn.sigmoid(-4.0))
    assert_near(direct, jax.nn.sigmoid(-6.0))
    assert {"bias", "map"} == set(params["params"]["source"])
    bare = jax.eval_shape(Layer2D(12, 3, gate_inputs="").init, jax.random.key(0), X[:1, :2, :2])["params"]
    assert all("map" not in bare[n] for n in ("source", "mark", "direct", "orientation"))
    normal = started(Layer2D(12, 3, gate_init="normal"))["params"]
    assert float(normal["source"]["map"]["kernel"].std()) == pytest.approx((2 / 60) ** 0.5, rel=0.2)


def test_gates_of_biases_alone_are_kept_once_for_all_rows():
    _, _, _, g, direct = run(layer(gate_inputs="T"), method="read")
    assert [x.shape[0] for x in (g.source_r, g.mark_l, direct, g.rl)] == [1, 1, 1, 2]
    assert_near(run(layer(gate_inputs="T")), run(layer(gate_inputs="T", grid_impl="nodes")))


def test_block_diagonal_gates_read_their_own_channels():
    module, params = layer(gate_blocks=12)
    sources = quick(jax.jacobian(lambda x: module.apply(params, x, method="read")[3].source_r.sum((0, 3, 4, 5, 6, 7))))
    slope = sources(X[:1, :1, :1])
    assert params["params"]["source"]["map"]["kernel"].shape == (12, 1, 1)
    own = np.abs(slope[:, :, 0, 0, 0]).reshape(12, 12) > 0
    assert (own.sum(1) >= 1).all()
    assert own[:, np.arange(12)].diagonal().all()
    assert layer(qkv_blocks=3)[1]["params"]["q"]["kernel"].shape == (3, 4, 4)


def test_directions_apart_are_normed_before_they_are_averaged():
    made, single = layer(fused=False), []
    module, params = made
    q, k, v, gates, direct = run(made, method="read")
    for i in ALL:
        g = Gates(*(x[:, :, i : i + 1] for x in gates))
        single.append(out_of(q, k, v, g, direct, directions=(i,)))
    y = jnp.stack(single, 1)[..., 0]
    y = y / jnp.sqrt((y**2).mean(-1, keepdims=True) + 1e-5) * params["params"]["head_norm"]["scale"][:, None, None]
    y = jnp.moveaxis(y.mean(1), 1, 3).reshape(2, 4, 6, 12) @ params["params"]["out"]["kernel"][0]
    assert_near(run(made), y, atol=1e-4)
    assert not np.allclose(run(made), run((module.clone(fused=True), params)), atol=1e-2)


@pytest.mark.parametrize("mode", ["P", "D"])
def test_state_tracking_sizes(mode):
    sizes = {"JT": 2, "JK": 2, "JV": 2, "JQ": 1, "JO": 2}
    want = run(layer(mode, **sizes, grid_impl="nodes"))
    assert want.shape == X.shape
    for impl in ("summed", "wavefront"):
        assert_near(run(layer(mode, **sizes, grid_impl=impl)), want, atol=1e-4)


def test_tiles_with_carried_states_are_the_whole():
    made = layer(directions="0", grid_impl="wavefront", chunk=2)
    whole, leaving = run(made, method="tile")
    assert_near(whole, run(made))
    parts, right = {}, {}
    for y in (slice(0, 4), slice(4, 6)):
        left = None
        for x in (slice(0, 2), slice(2, 4)):
            top = right.get(("down", x.start))
            entering = None
            if left is not None or top is not None:
                some = left if left is not None else top
                zero = [jnp.zeros((*some.shape[:3], n, *some.shape[4:])) for n in (y.stop - y.start, 2)]
                entering = Edges(zero[0] if left is None else left, zero[1] if top is None else top)
            parts[x.start, y.start], out = run(made, X[:, x, y], method="tile", entering=entering)
            left, right["down", x.start] = out.vertical, out.horizontal
    joined = [jnp.concatenate([parts[x, 0], parts[x, 4]], 2) for x in (0, 2)]
    assert_near(jnp.concatenate(joined, 1), whole)
    assert_near(right["down", 2], leaving.horizontal[:, :, :, 2:])


def test_convolution_on_a_grid():
    """y_xy = b + sum_ij w_ij z_{x-i, y-j}, zeros beyond the border."""
    z, rng = np.asarray(X), np.random.default_rng(0)
    w, b = rng.normal(size=(3, 3, 12)).astype(np.float32), rng.normal(size=12).astype(np.float32)
    want = np.broadcast_to(b, z.shape).copy()
    for x, y, i, j in np.ndindex(4, 6, 3, 3):
        if x >= i and y >= j:
            want[:, x, y] += w[i, j] * z[:, x - i, y - j]
    assert_near(GridConvolution(3).apply({"params": {"kernel": w, "bias": b}}, X), want)


def test_one_direction_with_its_convolution_is_causal():
    module, params = layer(directions="0", conv_width=2, conv_inputs="STMDQKVO", passthrough=True)
    slope = quick(jax.grad(lambda x: module.apply(params, x)[0, 1, 1].sum()))(X[:1, :3, :3])
    seen = np.abs(slope[0]).sum(-1) > 0
    np.testing.assert_array_equal(seen, np.array([[1, 1, 0], [1, 1, 0], [0, 0, 0]], bool))
    moved = X.at[:, 0, 0].add(1.0)
    assert not np.allclose(run((module, params), moved)[:, 1, 1], run((module, params))[:, 1, 1])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gate_blocks": 5}, "gate_blocks=5"),
        ({"qkv_blocks": 2}, "qkv_blocks=2"),
        ({"directions": "04"}, "directions='04'"),
        ({"directions": ""}, "directions=''"),
        ({"gate_inputs": "SX"}, "gate_inputs='SX'"),
        ({"chirality": "X"}, "chirality='X'"),
        ({"fused": False, "grid_impl": "summed"}, "no sum"),
        ({"JK": 3}, "JK=3"),
        ({"layers": "PX"}, "layers='PX'"),
        ({"layers": ""}, "layers=''"),
        ({"heads": 5}, "heads=5"),
        ({"block": "pre_up", "JO": 2}, "JO=2"),
        ({"grid_impl": "fast"}, "grid_impl='fast'"),
        ({"pooling": "max"}, "pooling='max'"),
        ({"dtype": "int8"}, "dtype='int8'"),
    ],
)
def test_what_is_asked_wrongly_is_named_in_one_line(options, words):
    with pytest.raises(ConfigError, match=words) as caught:
        build(**options)
    assert "\n" not in str(caught.value)
    assert "config.model." in str(caught.value)


def build(classes=5, **options):
    small = {"patch": 2, "width": 12, "heads": 3, "depth": 3, "ffn_multiple": 8}
    return vision.make({"model": {**vision.DEFAULTS, **small, **options}}, classes)


def test_layers_run_in_turn_with_their_own_weights():
    model = build(position="none")
    params = parameters(model)
    assert {kind: jax.tree.leaves(p)[0].shape[0] for kind, p in params["params"]["blocks"].items()} == {"P": 2, "D": 1}
    z = quick(partial(model.apply, method="embed"))(params, IMAGES)
    for kind, i in (("P", 0), ("D", 0), ("P", 1)):
        own = jax.tree.map(lambda a, i=i: a[i], params["params"]["blocks"][kind])
        z = jax.jit(model.block(kind).apply, compiler_options=QUICK)({"params": own}, z)
    z = z / jnp.sqrt((z**2).mean(-1, keepdims=True) + 1e-5) * params["params"]["final_norm"]["scale"]
    corners = jnp.concatenate([z[:, 0, 0], z[:, -1, 0], z[:, 0, -1], z[:, -1, -1]], -1)
    head = params["params"]["head"]
    assert_near(logits(model, params, IMAGES), corners @ head["kernel"] + head["bias"])


def test_larger_grids_need_no_other_weights():
    """A table of positions is resized, nothing else depends on the size."""
    large = jnp.tile(IMAGES, (1, 2, 1, 1))[:, :6]
    for position in ("none", "learned"):
        model = build(position=position)
        assert logits(model, parameters(model), large).shape == (2, 5)
    with pytest.raises(ConfigError, match="patch=2 does not divide images of 3 x 6"):
        logits(model, parameters(model), IMAGES[:, :3])


@pytest.mark.parametrize(
    "options",
    [
        {"pooling": "cls", "layers": "D"},
        {"pooling": "mean", "block": "pre_up", "layer_scale": 0.5},
        {"pooling": "centre", "ffn_gated": True, "norm": "layer"},
        {"pooling": "sum", "layer_scale": 1.0, "fused": False, "conv_width": 3},
    ],
    ids=str,
)
def test_variants_see_the_whole_image(options):
    model = build(depth=2, **options)
    params = parameters(model)
    slope = jax.jit(jax.grad(lambda x: model.apply(params, x).sum()), compiler_options=QUICK)(IMAGES)
    assert (np.abs(slope).sum((0, 3)) > 0).all()


def test_remat_changes_no_gradient():
    plain, marked = (build(layers="P", depth=2, remat=remat) for remat in ("none", "full"))

    @partial(jax.jit, static_argnums=0, compiler_options=QUICK)
    def slope(model, params):
        return jax.grad(lambda p: jnp.sin(model.apply(p, IMAGES)).sum())(params)

    jax.tree.map(partial(assert_near, atol=1e-4), slope(marked, parameters(plain)), slope(plain, parameters(plain)))


def test_half_precision_keeps_parameters_gates_and_logits_in_float32():
    half, full = build(dtype="bfloat16"), build()
    params = parameters(full)
    got, want = (logits(m, params, IMAGES) for m in (half, full))
    assert got.dtype == jnp.float32
    assert 0 < jnp.linalg.norm(got - want) < 0.05 * jnp.linalg.norm(want)
    own = {"params": jax.tree.map(lambda a: a[0], params["params"]["blocks"]["P"]["mixer"])}
    q, k, v, gates, _ = run((half.layer("P"), own), jnp.zeros((1, 2, 2, 12), jnp.bfloat16), method="read")
    assert {x.dtype for x in (q, k, v)} == {jnp.dtype("bfloat16")}
    assert {g.dtype for g in gates} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("width", "heads", "millions"), [(192, 3, 6.3), (384, 6, 23.0), (768, 12, 89.0)], ids=["T", "S", "B"]
)
def test_parameter_counts_of_the_paper(width, heads, millions):
    """6M, 23M and 89M for ImageNet-1k at 224: gates block-diagonal with 4 heads blocks, dense q, k and v."""
    options = {"patch": 16, "width": width, "heads": heads, "depth": 12, "ffn_multiple": 64}
    model = build(1000, **options, gate_blocks=4 * heads)
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    assert sum(a.size for a in jax.tree.leaves(shapes)) == pytest.approx(millions * 1e6, rel=0.02)
    published = {192: 1.4, 384: 4.9, 768: 18.2}[width]  # of multiplications, in 1e9
    assert model.forward_flops(shapes, (1, 224, 224, 3)) / 2e9 == pytest.approx(published, rel=0.12)


def test_gates_turned_have_g_of_each_direction():
    """G of the turned gates is that of the mirrored grid; `attend_to_all` with one direction is the recurrence."""
    with jax.enable_x64(True):
        q, k, v, gates, _ = drawn(3, 4)
        G = quick(lambda gates: gating(gates_turned(gates, ALL)))(gates)
        assert_close(G[:, :, 3], quick(gating)(Gates(*(jnp.flip(g[:, :, 3], (2, 3)) for g in gates))))
        only, first = Gates(*(g[:, :, :1] for g in gates)), Gates(*(g[:, :, 0] for g in gates))
        assert_close(
            quick(partial(attend_to_all, directions=(0,)))(q, k, v, only), quick(grid_memory)(q, k, v, first)[0]
        )
