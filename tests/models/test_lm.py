"""The language model: its stack, its sizes, its precision, and the laws of its mixers carried through."""

import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paperlab.config import ConfigError, base_config
from paperlab.models import lm

B, T, VOCAB = 2, 10, 11
QUICK = {"xla_backend_optimization_level": 0}
close = partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5)
TOKENS = jax.random.randint(jax.random.key(0), (B, T), 0, VOCAB)


def build(vocab=VOCAB, mixers=None, **options):
    small = {"width": 16, "depth": 3, "heads": 2, "ffn_multiple": 8, "init_std": 0.2}
    return lm.make({"model": {**lm.DEFAULTS, **small, **options}, "mixers": mixers or {}}, vocab)


@cache
def parameters(model):
    """Drawn without compiling `init`, which test_initialisation looks at."""
    draw = np.random.default_rng(1).normal
    shapes = jax.eval_shape(model.init, jax.random.key(1), TOKENS)
    return jax.tree.map(lambda a: 0.2 * draw(size=a.shape).astype(a.dtype), shapes)


def run(model, tokens=TOKENS, **inputs):
    return _run(model, parameters(model), tokens, inputs)


@partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def _run(model, params, tokens, inputs):
    return model.apply(params, tokens, **inputs)


HYBRID = build(hybrid="gla,attention", mixers={"attention": {"window": 4}, "gla": {"short_conv": True}})
RECURRENT = build(mixer="pararnn", residual_scale=True, mixers={"pararnn": {"mode": "parallel", "iterations": 10}})
LOOPED = build(hybrid="gla,attention", depth=5, program="loop:2,1,0")
SHARED = {"residual_coefficients": True, "interleaved": 0.5}
RECURSIVE = build(hybrid="gla,attention", depth=6, program="sequence:2", **SHARED)
MODELS = {"hybrid": HYBRID, "recurrent": RECURRENT, "looped": LOOPED, "recursive": RECURSIVE}
both_models = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


def test_layers_run_in_order_with_their_own_weights():
    params = parameters(HYBRID)["params"]
    x = params["embedding"][TOKENS]
    for name, i in (("gla", 0), ("attention", 0), ("gla", 1)):
        weights = jax.tree.map(lambda a, i=i: a[i], params["blocks"][name])
        x, _ = jax.jit(HYBRID.block(name).apply, compiler_options=QUICK)({"params": weights}, x)
    x = x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6) * params["final_norm"]["scale"]
    close(run(HYBRID)[0], x @ params["embedding"].T)
    assert HYBRID.layer_names() == ("gla", "attention", "gla")


def test_shared_layers_are_one_layer_and_count_each_time():
    assert LOOPED.layer_names() == ("gla", "attention", "gla", "attention", "gla")
    assert LOOPED.layer_counts() == {"gla": 2, "attention": 1}
    params = parameters(LOOPED)
    blocks = jax.tree.map(lambda a: a, params["params"]["blocks"])
    repeated = {"gla": [0, 1, 1], "attention": [0, 0]}  # 0 | 1 2 | 1 2, with 0 and 2 of gla
    untied = {name: jax.tree.map(lambda a, i=i: a[jnp.array(i)], blocks[name]) for name, i in repeated.items()}
    plain = build(hybrid="gla,attention,gla,attention,gla", depth=5)
    close(run(LOOPED)[0], _run(plain, {"params": {**params["params"], "blocks": untied}}, TOKENS, {})[0])
    sizes = {name: sum(a[0].size for a in jax.tree.leaves(stack)) for name, stack in blocks.items()}
    assert LOOPED.repeated_parameters(params) == sizes["gla"] + sizes["attention"]
    assert plain.repeated_parameters({"params": {"blocks": untied}}) == 0


def test_every_application_is_followed_by_a_layer_of_its_own():
    params = parameters(RECURSIVE)["params"]
    projection, after = RECURSIVE.projection(), dict.fromkeys(("gla", "attention"), 0)
    x = params["embedding"][TOKENS]
    for name, u in (("gla", 0), ("gla", 0), ("attention", 0), ("attention", 0), ("gla", 1), ("gla", 1)):
        weights = jax.tree.map(lambda a, u=u: a[u], params["blocks"][name])
        x, _ = jax.jit(RECURSIVE.block(name).apply, compiler_options=QUICK)({"params": weights}, x)
        own = jax.tree.map(lambda a, j=after[name]: a[j], params["interleaved"][name])
        x, after[name] = projection.apply({"params": own}, x), after[name] + 1
    x = x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6) * params["final_norm"]["scale"]
    close(run(RECURSIVE)[0], x @ params["embedding"].T)
    assert after == {"gla": 4, "attention": 2}
    assert params["interleaved"]["gla"]["ffn"]["up"]["kernel"].shape == (4, 16, 8)


def test_coefficients_weigh_both_terms_of_every_residual_sum():
    block = RECURSIVE.block("gla")
    params = jax.tree.map(lambda a: a[0], parameters(RECURSIVE)["params"]["blocks"]["gla"])
    x = jax.random.normal(jax.random.key(4), (1, 4, 16))
    at = lambda *a: block.apply({"params": {**params, "residual": jnp.array(a)}}, x)[0]  # noqa: E731
    plain = build(hybrid="gla,attention").block("gla")
    bare = {name: a for name, a in params.items() if name != "residual"}
    close(at(1.0, 1.0, 1.0, 1.0), plain.apply({"params": bare}, x)[0])
    close(at(2.0, 0.0, 3.0, 0.0), 6 * x)
    mixed = at(0.0, 1.0, 1.0, 0.0)
    close(at(0.5, -2.0, 1.0, 0.0), 0.5 * x - 2 * mixed)
    close(at(0.0, 1.0, 0.0, 3.0), 3 * (at(0.0, 1.0, 1.0, 1.0) - mixed))


@both_models
def test_step_by_step_and_split_equal_whole(model):
    whole, last = run(model, state=model.zero_state(B, T))
    close(run(model)[0], whole)
    left, carried = run(model, TOKENS[:, :5], state=model.zero_state(B, T))
    right, end = run(model, TOKENS[:, 5:], state=carried)
    close(jnp.concatenate([left, right], 1), whole)
    step = jax.jit(partial(model.apply, method="step"), compiler_options=QUICK)
    state = model.zero_state(B, T)
    for i in range(T):
        logits, state = step(parameters(model), TOKENS[:, i], state, jnp.full((B,), i))
        close(logits, whole[:, i])
    for other in (end, state):
        jax.tree.map(close, other, last)


@both_models
def test_packed_equals_separate(model):
    ids = jnp.broadcast_to(jnp.arange(T) // 5, (B, T))
    packed, _ = run(model, segment_ids=ids, positions=jnp.broadcast_to(jnp.arange(T) % 5, (B, T)))
    close(packed, jnp.concatenate([run(model, TOKENS[:, :5])[0], run(model, TOKENS[:, 5:])[0]], 1))


@pytest.mark.parametrize(
    ("options", "millions"),
    [
        ({"width": 1024, "tie_embeddings": True}, 341.7),
        ({"width": 2048, "tie_embeddings": False}, 1365.5),
    ],
)
def test_parameter_counts_of_the_paper(options, millions):
    """340M and 1.3B; the latter are 1300.0M and, beside them, a table that only looks tokens up (not tied to the head)."""
    model = build(32_000, depth=24, heads=4, ffn_multiple=256, **options)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 8), jnp.int32))
    count = sum(a.size for a in jax.tree.leaves(shapes))
    assert count == pytest.approx(millions * 1e6, rel=1e-3)
    nominal = 340e6 if options["tie_embeddings"] else 1.3e9
    assert lm.matmul_parameters(shapes) == pytest.approx(nominal, rel=0.02)
    head = {"embedding": (32_000, 1024)} if options["tie_embeddings"] else {"head": (2048, 32_000)}
    assert {name: shapes["params"][name].shape for name in head} == head


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_remat_changes_no_gradient(remat):
    def slope(remat):
        model = build(remat=remat, mixer="attention", program="loop:2,1,0", depth=3)
        return model, jax.grad(lambda p: jnp.sum(jnp.sin(model.apply(p, TOKENS)[0])))

    (plain, want), (marked, got) = slope("none"), slope(remat)
    assert str(jax.make_jaxpr(want)(parameters(plain))).count("remat2[") == 0
    assert str(jax.make_jaxpr(got)(parameters(marked))).count("remat2[") == 2, "the layer before and the loop"
    want, got = (jax.jit(f, compiler_options=QUICK)(parameters(plain)) for f in (want, got))
    jax.tree.map(partial(close, atol=1e-4), got, want)


def test_half_precision_computes_in_it_and_keeps_parameters_and_logits_in_float32():
    half = build(dtype="bfloat16")
    logits, _ = run(half)
    assert logits.dtype == jnp.float32
    assert {a.dtype for a in jax.tree.leaves(parameters(half))} == {jnp.dtype("float32")}
    want = run(build())[0]
    assert 0 < jnp.linalg.norm(logits - want) < 0.05 * jnp.linalg.norm(want)
    text = str(jax.make_jaxpr(half.apply)(parameters(half), TOKENS))
    assert re.search(r"bf16\[20,48\] = dot_general", text), "the middle of the feed-forward layer"
    assert not re.search(r"f32\[20,48\] = dot_general", text.replace("bf16", "half"))


@pytest.mark.parametrize("tied", [True, False])
def test_padded_vocabulary_is_never_seen(tied):
    model = build(vocab_multiple=8, tie_embeddings=tied)
    params = parameters(model)["params"]
    assert params["embedding"].shape == (16, 16)
    assert ("head" in params) != tied
    logits, state = run(model, state=model.zero_state(B))
    assert logits.shape == (B, T, VOCAB)
    assert model.apply(parameters(model), TOKENS[:, 0], state, method="step")[0].shape == (B, VOCAB)


def test_dropout_acts_where_a_key_is_given_and_differs_by_layer():
    model = build(dropout=0.5, mixer="attention")
    key = jax.random.key(3)
    apply = jax.jit(model.apply, compiler_options=QUICK)
    still = apply(parameters(model), TOKENS)[0]
    close(still, run(build(mixer="attention"))[0])
    a, b, c = (apply(parameters(model), TOKENS, rngs={"dropout": k})[0] for k in (key, key, jax.random.key(4)))
    assert jnp.array_equal(a, b)
    assert not jnp.array_equal(a, c)
    assert not jnp.array_equal(a, still)


def test_the_residual_stream_can_be_scaled_by_learned_vectors():
    """They start at one, as if there were none; a zero cuts off all that came before."""
    layer = jax.tree.map(lambda a: a[0], parameters(RECURRENT)["params"]["blocks"]["pararnn"])
    x = jax.random.normal(jax.random.key(2), (B, T, 16))

    @partial(jax.jit, static_argnums=0, compiler_options=QUICK)
    def output(model, mixer, ffn, x):
        scales = {"mixer_residual_scale": mixer * jnp.ones(16), "ffn_residual_scale": ffn * jnp.ones(16)}
        kept = {**layer, **scales} if model is RECURRENT else {k: a for k, a in layer.items() if k not in scales}
        return model.block("pararnn").apply({"params": kept}, x)[0]

    plain = build(mixer="pararnn", mixers={"pararnn": {"mode": "parallel", "iterations": 10}})
    close(output(RECURRENT, 1.0, 1.0, x), output(plain, 1.0, 1.0, x))
    mixed, _ = RECURRENT.block("pararnn").mixer.apply(
        {"params": layer["mixer"]},
        x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6) * layer["mixer_norm"]["scale"],
    )
    close(output(RECURRENT, 2.0, 0.0, x) - output(RECURRENT, 2.0, -1.0, x), 2 * x + mixed)
    started = jax.jit(RECURRENT.init, compiler_options=QUICK)(jax.random.key(0), TOKENS[:1, :2])["params"]["blocks"][
        "pararnn"
    ]
    assert jnp.all(started["mixer_residual_scale"] == 1)
    assert started["ffn_residual_scale"].shape == (3, 16)


def test_every_layer_shows_its_gates():
    _, shown = jax.jit(partial(HYBRID.apply, mutable=["intermediates"]))(parameters(HYBRID), TOKENS)
    (gla,) = shown["intermediates"]["gla"]
    assert gla["mixer"]["log_alpha"][0].shape == (2, B, T, 2, 4)
    assert gla["mixer"]["core_out"][0].shape == (2, B, T, 2, 8)


def test_initialisation():
    model = build(width=64, init_std=0.02, scaled_residual_init=True)
    params = jax.jit(model.init, compiler_options=QUICK)(jax.random.key(1), TOKENS[:1, :2])["params"]
    block = params["blocks"]["gla"]
    assert jnp.std(block["mixer"]["v"]["kernel"]) == pytest.approx(0.02, rel=0.05)
    assert jnp.std(block["mixer"]["out"]["kernel"]) == pytest.approx(0.02 / 6**0.5, rel=0.05)
    assert jnp.std(block["ffn"]["down"]["kernel"]) == pytest.approx(0.02 / 6**0.5, rel=0.05)
    assert not jnp.array_equal(block["mixer"]["v"]["kernel"][0], block["mixer"]["v"]["kernel"][1])
    assert jnp.all(block["mixer"]["gate_up"]["bias"] == 0)


@pytest.mark.parametrize("options", [{}, {"tie_embeddings": False}])
def test_sharding_rules_reach_every_matrix(options):
    model = build(hybrid="gla,attention,pararnn", mixers={"gla": {"gate_beta": True}}, **options)
    rules = model.sharding()
    flat = jax.tree_util.tree_flatten_with_path(parameters(model))[0]
    paths = {jax.tree_util.keystr(p, simple=True, separator="/"): a for p, a in flat}
    for pattern, axes in rules:
        found = [a for path, a in paths.items() if re.search(pattern, path)]
        assert found or pattern == r"head$"
        assert all(a.ndim >= len(axes) for a in found)
    unreached = [p for p in paths if not any(re.search(pattern, p) for pattern, _ in rules)]
    assert all(path.endswith(("scale", "bias")) for path in unreached)


def test_made_from_a_config_and_from_plain_dicts_alike():
    config = base_config()
    config.model.update(hybrid="gla,gla,attention", depth=4)
    config.mixers.gla.gate = "scalar"
    model = lm.make(config, VOCAB)
    assert model == lm.make(config.to_dict(), VOCAB)
    assert hash(model) == hash(lm.make(config, VOCAB))
    assert model.layer_counts() == {"gla": 3, "attention": 1}
    assert model.block("gla").mixer.gate == "scalar"
    assert lm.mixers_of(config) == {"gla", "attention"}


@pytest.mark.parametrize(
    ("options", "mixers", "message"),
    [
        ({"remat": "all"}, {}, "model.remat='all': choose one of none, full, dots"),
        ({"dtype": "int8"}, {}, "model.dtype='int8'"),
        ({"mixer": "galu"}, {}, "'galu'"),
        ({"heads": 3}, {}, "config.model.heads=3: .* multiples of heads=3"),
        ({}, {"gla": {"gate": "soft"}}, "config.mixers.gla.gate='soft': choose one of channel"),
        ({}, {"gla": {"kv_heads": 4}}, "config.mixers.gla.kv_heads=4 must divide config.model.heads=2"),
        ({}, {"gla": {"gate_clamp": 0.5}}, "gate_clamp=0.5"),
        ({}, {"gla": {"gates": 1}}, "mixers.gla: .*gates"),
        ({"mixer": "attention", "heads": 16}, {}, "even number of channels"),
        ({"mixer": "attention"}, {"attention": {"position": "sine"}}, "config.mixers.attention.position='sine'"),
        ({"mixer": "pararnn"}, {"pararnn": {"bare": True, "expand": 2.0}}, "config.mixers.pararnn: it puts out 32"),
        ({"depth": 0}, {}, "model.depth=0"),
        ({"depth": 4, "program": "loop:3"}, {}, "config.model.program='loop:3' of 4 layers: 3 loops must divide"),
        ({"program": "spiral:3"}, {}, "config.model.program='spiral:3': say loop:R"),
        ({"hybrid": "gla,,gla"}, {}, "model.hybrid"),
    ],
)
def test_wrong_options_are_named(options, mixers, message):
    with pytest.raises(ConfigError, match=message):
        jax.eval_shape(build(mixers=mixers, **options).init, jax.random.key(0), TOKENS)


def test_an_attention_cache_needs_a_length():
    with pytest.raises(ValueError, match="max_len >= 1"):
        build(mixer="attention").zero_state(B)
