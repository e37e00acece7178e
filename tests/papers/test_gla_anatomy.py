"""What is read out of a trained GLA is what the layer computed, and every picture of it is titled and labelled."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest

from paperlab.mixers.gla import retnet_log_decay
from paperlab.models import lm
from paperlab.papers.gla import anatomy, charts, pictures

WIDTH, HEADS, VOCAB = 16, 2, 7
K, V = WIDTH // 2 // HEADS, WIDTH // HEADS


def build(hybrid="gla", depth=2, **options):
    """A model with large random weights, so that nothing it computes is near zero."""
    sizes = {"width": WIDTH, "depth": depth, "heads": HEADS, "ffn_multiple": 8, "hybrid": hybrid}
    model = lm.make({"model": {**lm.DEFAULTS, **sizes}, "mixers": {"gla": options}}, VOCAB)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    draw = np.random.default_rng(0).normal
    return model, jax.tree.map(lambda a: 0.5 * draw(size=a.shape).astype(a.dtype), shapes)


def tokens(length, count=VOCAB, rows=()):
    return jax.random.randint(jax.random.key(1), (*rows, length), 0, count)


def test_gates_are_those_of_the_layers():
    model, params = build(gate="fixed")
    found = anatomy.gates(model, params, tokens(9, rows=(3,)))
    assert found.shape == (2, 3, 9, HEADS, K)
    np.testing.assert_allclose(found, np.broadcast_to(retnet_log_decay(HEADS), found.shape), rtol=1e-6)


def test_gates_are_those_of_the_layer_that_stands_there():
    model, params = build("gla,attention,gla", depth=3)
    found = anatomy.gates(model, params, tokens(5, rows=(1,)))
    x = params["params"]["embedding"][tokens(5, rows=(1,))]
    layer = jax.tree.map(lambda a: a[0], params["params"]["blocks"]["gla"])
    x = x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-6) * layer["mixer_norm"]["scale"]
    gate = layer["mixer"]
    logits = x @ gate["gate_down"]["kernel"] @ gate["gate_up"]["kernel"] + gate["gate_up"]["bias"]
    np.testing.assert_allclose(found[0].reshape(logits.shape), jax.nn.log_sigmoid(logits) / 16, rtol=1e-4, atol=1e-6)
    assert found.shape[0] == 2


def test_a_model_without_gla_has_no_gates():
    model, params = build("attention")
    with pytest.raises(ValueError, match="no gla layer, only attention"):
        anatomy.gates(model, params, tokens(4, rows=(1,)))


def test_half_lives_are_what_halves_a_write():
    log_alpha = np.array([[-0.1, 0.0], [-0.3, 0.0]])
    mean = anatomy.half_lives(log_alpha, 0)
    assert np.exp(-0.2 * mean[0]) == pytest.approx(0.5)
    assert np.isinf(mean[1])
    assert anatomy.half_lives(np.log(0.5)) == pytest.approx(1)


@pytest.mark.parametrize("hybrid", ["gla", "gla,attention"])
def test_states_step_by_step_are_those_of_the_prefix(hybrid):
    model, params = build(hybrid)
    text = tokens(11)
    found = anatomy.states(model, params, text)
    layers = model.layer_counts()["gla"]
    assert found.shape == (11, layers, HEADS, K, V)
    for read in (4, 11):
        _, state = jax.jit(model.apply)(params, text[None, :read], state=model.zero_state(1, 11))
        np.testing.assert_allclose(found[read - 1], state["gla"]["S"][:, 0], rtol=2e-4, atol=1e-5)


def test_effective_rank_counts_directions():
    full, one = jnp.eye(4), jnp.outer(jnp.arange(1.0, 5), jnp.arange(2.0, 6))
    found = anatomy.effective_rank(jnp.stack([full, one, jnp.zeros((4, 4)), jnp.diag(jnp.array([1.0, 1, 0, 0]))]))
    np.testing.assert_allclose(found, [4, 1, 0, 2], rtol=1e-3)


def test_influence_is_the_divergence_that_one_token_makes():
    model, params = build()
    text = np.asarray(tokens(6, count=2))
    assert 0 < text.sum() < 6
    bits = anatomy.influence(model, params, text, key=jax.random.key(0), draws=2, rows=5)

    apply = jax.jit(model.apply)

    def probabilities(text):
        return np.asarray(jax.nn.softmax(apply(params, text[None])[0][0]), np.float64)

    usual, expected = probabilities(text), np.zeros((6, 6))
    for j in range(6):
        other = text.copy()
        other[j] = 1 - text[j]  # two kinds of token: there is one other
        expected[j] = (usual * np.log2(usual / probabilities(other))).sum(-1)
    assert expected[0, 5] > 1e-3, "a first token without any effect tests nothing"
    np.testing.assert_allclose(bits, expected, atol=2e-5)


def test_influence_needs_a_token_to_exchange():
    model, params = build()
    with pytest.raises(ValueError, match="two different tokens"):
        anatomy.influence(model, params, np.zeros(5, np.int32), key=jax.random.key(0))


def test_the_state_of_gla_does_not_grow_and_a_cache_does():
    recurrent, cache = build()[0], build("gla,attention")[0]
    real = sum(leaf.nbytes for leaf in jax.tree.leaves(recurrent.zero_state(1, 64)))
    assert anatomy.state_bytes(recurrent, 64) == anatomy.state_bytes(recurrent, 4096) == real
    assert anatomy.state_bytes(cache, 4096) > 30 * anatomy.state_bytes(cache, 64) > 0


TEXT = "def f(x):\n    return x\n"
T = len(TEXT)
RNG = np.random.default_rng(0)
GATES = -RNG.uniform(0.001, 0.5, (2, T, HEADS, K))
STATES = RNG.normal(size=(T, HEADS, K, V))
METRICS = [{"step": step, "bits_per_byte": 5 - step / 10} for step in (10, 20)] + [{"step": 20, "val_loss": 1.0}]
BASELINES = {f"{name}_bits_per_byte": i + 1.5 for i, name in enumerate(("xz9", "gzip9", "bigram", "unigram"))}
DRAWN = {
    "learning": lambda: pictures.learning(METRICS, {"steps": 20, "val_bits_per_byte": 3.1, "baselines": BASELINES}),
    "gate_map": lambda: pictures.gate_map(GATES, TEXT),
    "half_life_curves": lambda: pictures.half_life_curves(GATES, start=16, longest=256),
    "half_life_by_character": lambda: pictures.half_life_by_character(GATES, list(TEXT), least=2),
    "state_multiples": lambda: pictures.state_multiples(STATES, TEXT, [1, 5, T], layer=1),
    "state_growth": lambda: pictures.state_growth(RNG.uniform(size=(T, 2)), RNG.uniform(size=(T, 2)), TEXT, most=K),
    "influence_map": lambda: pictures.influence_map(np.triu(RNG.uniform(size=(T, T))), TEXT),
    "time_ratios": lambda: charts.time_ratios((8, 16), {"a": [1.0, 1.0], "b": [3.0, None]}, "a"),
    "errors_by_decay": lambda: charts.errors_by_decay((0.1, 1), {"one": [1e-6, np.nan], "two": [1e-6, 1e-6]}, 0.5),
    "memory": lambda: charts.memory((64, 128), {"gla": [1024, 1024], "softmax": [2048, 4096]}),
    "perplexity_bars": lambda: charts.perplexity_bars({"no_gate": [9.0, 9.1], "channel_gate": [4.0, 4.2]}),
    "perplexity_by_position": lambda: charts.perplexity_by_position({"channel_gate": np.ones((3, 256))}, 64),
}


@pytest.mark.parametrize("name", DRAWN)
def test_every_picture_is_titled_and_labelled(name):
    figure = DRAWN[name]()
    try:
        figure.canvas.draw()
        named = [axes for axes in figure.axes if axes.get_title(loc="left") or axes.get_ylabel() or axes.get_xlabel()]
        alone = [axes for axes in figure.axes if axes.axison and axes.get_yticks().size and axes not in named]
        assert alone == [], "axes with ticks and no words"
        assert figure.get_suptitle() or figure.axes[0].get_title(loc="left")
        words = [axes.get_xlabel() for axes in figure.axes] + [axes.get_ylabel() for axes in figure.axes]
        assert sum(map(bool, words)) >= 2 or name == "perplexity_bars"
    finally:
        plt.close(figure)


def test_every_picture_is_drawn_by_the_table_above():
    public = {
        name
        for module in (pictures, charts)
        for name, thing in vars(module).items()
        if callable(thing) and thing.__module__ == module.__name__ and not name.startswith("_")
    }
    assert public - set(DRAWN) == {"letter_ticks", "visible"}


def test_what_is_not_finite_is_a_cross_and_what_was_not_run_a_gap():
    figure = DRAWN["errors_by_decay"]()
    crosses = [line for line in figure.axes[0].lines if line.get_marker() == "x"]
    assert [len(line.get_xdata()) for line in crosses] == [1, 0]
    plt.close(figure)
    figure = DRAWN["time_ratios"]()
    ratios = {line.get_label(): line.get_ydata().tolist() for line in figure.axes[0].lines}
    plt.close(figure)
    assert ratios["a"] == [1, 1]
    assert ratios["b"][0] == 3
    assert np.isnan(ratios["b"][1])


def test_blanks_and_line_ends_are_seen():
    assert (
        "".join(pictures.visible("a b\n\x00"))
        == "a\N{OPEN BOX}b\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}\N{MIDDLE DOT}"
    )
