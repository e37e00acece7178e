"""The Universal Transformer: tied and untied, step by step and whole, who sees what, when it stops, what it costs."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paperlab.decoding import generate
from paperlab.depth.halting import KINDS
from paperlab.errors import ConfigError
from paperlab.papers.universal_transformer import decoder, encoder, options, seq2seq
from paperlab.papers.universal_transformer.attention import Sight
from paperlab.papers.universal_transformer.block import RECURRENCES
from paperlab.papers.universal_transformer.timing import signal
from paperlab.papers.universal_transformer.transition import Transition
from tests.recurrence.laws import QUICK

V, B, T = 11, 2, 6
TOKENS = jnp.asarray(np.random.default_rng(0).integers(2, V, (B, T)))
SMALL = {"width": 8, "hidden": 12, "heads": 2, "steps": 3}
close = partial(np.testing.assert_allclose, atol=2e-5, rtol=2e-5)


def made(form: Any, *size: int, **model: Any) -> Any:
    """A small model of one of the three forms."""
    return form.make({"model": {**SMALL, **model}}, V, *size)


def quickly(f: Any, *args: Any) -> Any:
    """f(*args), compiled without optimisation."""
    return jax.jit(f).lower(*args).compile(compiler_options=QUICK)(*args)


def started(model: Any, *inputs: Any) -> Any:
    """Parameters in which nothing is at a special value: norms, biases and gates too."""
    params = quickly(model.init, jax.random.key(1), *inputs)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    moved = [a + 0.1 * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, moved)


@pytest.mark.parametrize("recurrence", RECURRENCES)
def test_step_by_step_equals_whole_for_every_recurrence(recurrence):
    odd = recurrence in ("basic", "lstm", "dwa")
    more = {"transition": "sepconv", "norm": "post", "before": 1, "after": 1} if odd else {"signal_by": "concat"}
    model = made(decoder, recurrence=recurrence, halting="accumulated", own_carry=True, **more)
    params = started(model, TOKENS)
    whole, none = quickly(model.apply, params, TOKENS)
    assert none is None
    first, state = quickly(lambda p, x: model.apply(p, x, state=model.zero_state(B, T)), params, TOKENS[:, :3])
    parts, step = [first], jax.jit(partial(model.apply, method="step"))
    for t in range(3, T):
        logits, state = step(params, TOKENS[:, t], state)
        parts.append(logits[:, None])
    close(jnp.concatenate(parts, 1), whole)


@pytest.mark.parametrize("recurrence", ["act", "gru"])
def test_a_decoder_with_memory_writes_as_it_reads(recurrence):
    model = made(seq2seq, recurrence=recurrence, tied=recurrence == "gru")
    params = started(model, TOKENS, TOKENS)
    valid = jnp.arange(T) < jnp.asarray([[T], [T - 2]])
    inputs = jnp.pad(TOKENS, ((0, 0), (1, 0)))[:, :4]
    whole, notes = quickly(lambda p: model.apply(p, TOKENS, inputs, source_valid=valid), params)
    memory = model.apply(params, TOKENS, source_valid=valid, method="encode")
    state, parts = model.zero_state(memory, 4), []
    step = jax.jit(partial(model.apply, method="step"))
    for t in range(4):
        logits, state = step(params, inputs[:, t], state, memory, jnp.full(B, t))
        parts.append(logits)
    close(jnp.stack(parts, 1), whole)
    assert ("ponder" in notes) == (recurrence == "act")
    longer = jnp.where(valid, TOKENS, 7)
    close(quickly(lambda p: model.apply(p, longer, inputs, source_valid=valid)[0], params), whole)


def test_tied_steps_without_signals_are_layers_with_the_same_weights():
    plain = {"position_signal": False, "step_signal": "none", "recurrence": "highway"}
    tied, untied = made(decoder, **plain), made(decoder, tied=False, **plain)
    params = started(tied, TOKENS)
    copies = jax.tree_util.tree_map_with_path(
        lambda path, a: jnp.repeat(a, 3, 0) if any(getattr(k, "key", "") == "unit" for k in path) else a, params
    )

    def total(model, p):
        return jnp.square(model.apply(p, TOKENS)[0]).sum()

    one, slopes = quickly(jax.value_and_grad(partial(total, tied)), params)
    other, each = quickly(jax.value_and_grad(partial(total, untied)), copies)
    close(one, other)
    unit = lambda tree: jax.tree.leaves(tree["params"]["decoder"]["unit"])  # noqa: E731
    for shared, own in zip(unit(slopes), unit(each), strict=True):
        np.testing.assert_allclose(shared[0], own.sum(0), rtol=2e-3, atol=2e-3 * float(jnp.abs(own).max()))


def test_without_signals_an_encoder_permutes_with_its_tokens():
    model = made(encoder, 5, position_signal=False)
    params = started(model, TOKENS)
    order = np.random.default_rng(1).permutation(T)
    said = jax.jit(lambda p, x: model.apply(p, x)[0])
    close(said(params, TOKENS[:, order]), said(params, TOKENS)[:, order])
    placed = made(encoder, 5)
    params = started(placed, TOKENS)
    moved = placed.apply(params, TOKENS[:, order])[0] - placed.apply(params, TOKENS)[0][:, order]
    assert float(jnp.abs(moved).max()) > 1e-3


def test_rows_take_the_steps_they_are_given():
    model = made(encoder, 5, step_signal="sinusoid")
    params = started(model, TOKENS)
    rows = quickly(lambda p: model.apply(p, TOKENS, steps_B=jnp.asarray([1, 3]))[0], params)
    short = made(encoder, 5, step_signal="sinusoid", steps=1)
    close(rows[0], quickly(lambda p: short.apply(p, TOKENS)[0], params)[0])
    close(rows[1], quickly(lambda p: model.apply(p, TOKENS)[0], params)[1])
    cut, notes = quickly(lambda p: model.apply(p, TOKENS, steps_B=jnp.asarray([1, 3]), limit=1), params)
    close(cut[0], rows[0])
    assert int(notes["steps"]["encoder"]) == 1


@pytest.mark.parametrize("causal", [True, False])
def test_a_decoder_sees_nothing_later(causal):
    x = jax.random.normal(jax.random.key(0), (1, T, 8))
    later = x.at[:, 4].add(1.0)
    module = Transition(8, 12, "sepconv", causal)
    params = module.init(jax.random.key(1), x, Sight())
    a, b = (module.apply(params, x, Sight())[0] for x in (x, later))
    assert bool(jnp.array_equal(a[:, :4], b[:, :4])) == causal
    if causal:
        model = made(decoder, transition="sepconv", recurrence="act", halting="graves", norm="post")
        p = started(model, TOKENS)
        said = jax.jit(lambda x: model.apply(p, x)[0])
        close(said(TOKENS)[:, :4], said(TOKENS.at[:, 4].set(3))[:, :4])


def test_packed_documents_see_only_themselves():
    model = made(decoder, transition="sepconv")
    params = started(model, TOKENS)
    segments = jnp.asarray([[0, 0, 1, 1, 1, 1]] * B)
    places = jnp.asarray([[0, 1, 0, 1, 2, 3]] * B)
    packed = quickly(lambda p: model.apply(p, TOKENS, segment_ids=segments, positions=places)[0], params)
    close(packed[:, 2:], quickly(lambda p: model.apply(p, TOKENS[:, 2:])[0], params))
    with pytest.raises(ConfigError, match="one document a row"):
        model.apply(params, TOKENS, state=model.zero_state(B, T), segment_ids=segments)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_padding_changes_nothing(norm):
    model = made(encoder, 5, norm=norm, transition="sepconv", recurrence="act", halting="global")
    params = started(model, TOKENS)
    valid = jnp.arange(T)[None] < 4
    rows = jnp.broadcast_to(valid, (B, T))
    padded, notes = quickly(lambda p: model.apply(p, jnp.where(valid, TOKENS, 9), valid=rows), params)
    alone, own = quickly(lambda p: model.apply(p, TOKENS[:, :4]), params)
    close(padded[:, :4], alone)
    close(notes["extra_loss"], own["extra_loss"])
    assert not notes["ponder"]["encoder"][:, 4:].any()


@pytest.mark.parametrize("kind", KINDS)
def test_stopping_early_gives_what_all_steps_give(kind):
    model = made(encoder, 5, recurrence="act", halting=kind, steps=5, freeze_halted=kind == "graves")
    params = started(model, TOKENS)
    run = lambda p, train: model.apply(p, TOKENS, train=train, rngs={"halting": jax.random.key(3)})  # noqa: E731
    (early, notes), (all_steps, trained) = (quickly(partial(run, train=t), params) for t in (False, True))
    close(early, all_steps)
    assert int(notes["steps"]["encoder"]) == int(notes["ponder"]["encoder"].max()) == int(trained["steps"]["encoder"])


def test_one_step_is_weighted_by_what_its_own_input_says():
    own = {**options.DEFAULTS, **SMALL, "steps": 1, "norm": "post", "step_signal": "none"}
    ponders = options.sides({**own, "recurrence": "act", "halting": "accumulated", "halting_bias_init": -0.5})
    x, places, sight = jax.random.normal(jax.random.key(0), (B, T, 8)), jnp.arange(T)[None], Sight()
    params = ponders.init(jax.random.key(1), x, sight, places)
    y, _, notes = ponders.apply(params, x, sight, places)
    h, *_ = options.sides(own).apply(params, x, sight, places)
    z = x + signal(places, 8, "concatenated")
    p = jax.nn.sigmoid(z @ params["params"]["halting_kernel"] - 0.5)
    close(y, jnp.where(p > 0.99, 1, p) * h)
    assert bool((notes["ponder"] == 1).all())


def test_the_cost_of_pondering_moves_the_halting_bias():
    model = made(encoder, 5, recurrence="act", halting="accumulated", halting_weight=1.0)
    with jax.enable_x64(True):
        model = made(encoder, 5, recurrence="act", halting="accumulated", halting_weight=1.0, dtype="float64")
        params = jax.tree.map(lambda a: a.astype(jnp.float64), model.init(jax.random.key(1), TOKENS))

        def cost(bias):
            own = params["params"]
            moved = {**own, "encoder": {**own["encoder"], "halting_bias": bias}}
            return model.apply({"params": moved}, TOKENS, train=True)[1]["extra_loss"].sum()

        bias, h = jnp.asarray([-1.5]), 1e-6
        slope = jax.grad(cost)(bias)[0]
        steep = (cost(bias + h) - cost(bias - h)) / (2 * h)
    np.testing.assert_allclose(slope, steep, rtol=1e-6)
    assert abs(float(slope)) > 1e-3


def test_a_random_offset_is_a_shift_of_positions():
    model = made(decoder, position_start="random")
    params = started(model, TOKENS)
    key = jax.random.key(5)
    moved = model.apply(params, TOKENS, rngs={"positions": key})[0]
    found = [
        o
        for o in range(T)
        if np.allclose(model.apply(params, TOKENS, positions=o + jnp.arange(T)[None])[0], moved, atol=1e-5)
    ]
    assert len(found) == 1
    again = model.apply(params, TOKENS)[0]
    close(again, model.apply(params, TOKENS, positions=jnp.arange(T)[None])[0])


def test_signals_of_the_paper_by_hand():
    d, i, t = 6, 4, 2
    want = [f(i / 10_000 ** (2 * j / d)) + f(t / 10_000 ** (2 * j / d)) for j in range(3) for f in (np.sin, np.cos)]
    close(signal(jnp.asarray(i), d, "interleaved") + signal(jnp.asarray(t), d, "interleaved"), want)
    with pytest.raises(ValueError, match="layout"):
        signal(jnp.asarray(i), d, "other")


def test_steps_cost_no_parameters():
    def count(**model):
        shapes = jax.eval_shape(made(encoder, 5, step_signal="sinusoid", **model).init, jax.random.key(0), TOKENS)
        return sum(a.size for a in jax.tree.leaves(shapes["params"]["encoder"]))

    assert count(steps=6) == count(steps=1, tied=False)
    assert count(steps=6, tied=False) - count(steps=1) == 5 * (count(steps=1) - 2 * 8)  # the last norm stands once


def test_products_count_every_step():
    def products(**model):
        made_one = made(decoder, step_signal="sinusoid", **model)
        params = jax.eval_shape(made_one.init, jax.random.key(0), TOKENS)
        return decoder.matmul_parameters(params) + made_one.repeated_parameters(params)

    assert products(steps=4) == products(steps=4, tied=False)
    assert products(steps=4, tie_embeddings=False) - products(steps=4) == V  # the bias of a head of its own


def test_the_base_set_has_the_sizes_of_its_equations():
    d, f = 1024, 4096
    model = seq2seq.make(
        {"model": {"width": d, "hidden": f, "heads": 16, "steps": 6, "step_signal": "sinusoid"}}, 32_000
    )
    shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS, TOKENS)["params"]
    size = lambda tree: sum(a.size for a in jax.tree.leaves(tree))  # noqa: E731
    attention, ffn, norm = 4 * d * d, 2 * d * f + d + f, 2 * d
    assert size(shapes["encoder"]) == attention + ffn + 3 * norm
    assert size(shapes["decoder"]) == 2 * attention + ffn + 4 * norm
    assert size(shapes["symbols"]) == 32_000 * d


def test_facts_are_words_by_their_places():
    model = made(encoder, 5, words=3, steps=1)
    facts = jnp.asarray([[[2, 3, 0], [4, 0, 0]]])
    params = started(model, facts)
    said = model.apply(params, facts)[0]
    close(model.apply(params, facts.at[0, 1, 0].set(4))[0], said)
    swapped = model.apply(params, jnp.asarray([[[3, 2, 0], [4, 0, 0]]]))[0]
    assert float(jnp.abs(swapped - said).max()) > 1e-3
    with pytest.raises(ValueError, match="facts"):
        model.apply(params, facts[0])


def test_a_language_model_writes_what_it_would_say():
    model = made(decoder, recurrence="act")
    params = started(model, TOKENS)
    written = generate(model, params, TOKENS[:, :2], 3, jax.random.key(0), temperature=0)
    row = jnp.concatenate([TOKENS[:, :2], written], 1)
    assert bool((model.apply(params, row)[0][:, 1:-1].argmax(-1) == written).all())


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"heads": 3}, "must divide"),
        ({"gate_inputs": "sx"}, "letters"),
        ({"recurrence": "gru", "inner_layers": 2}, "one layer a step"),
        ({"position_start": "step"}, "does not know"),
        ({"recurrence": "act", "halting": "global"}, "later tokens"),
        ({"recurrence": "act", "halting": "none"}, "halting"),
        ({"dtype": "float64"}, "JAX_ENABLE_X64"),
    ],
)
def test_options_that_do_not_go_together_are_refused(model, said):
    with pytest.raises(ConfigError, match=said):
        decoder.check({"model": {**SMALL, **model}})
    assert options.DEFAULTS["steps"] == 6
