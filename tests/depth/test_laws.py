"""Laws of recursive stacks, one table over mixers, programs, routers and policies of caches.

tied == untied with copied weights;  step by step == whole;  no output sees a later input;  padding and other rows change nothing;
only what is taken is computed.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paperlab.depth.convert import untie
from paperlab.depth.program import loop, parse, plain, shared
from paperlab.depth.recursive import Options, Recursive
from paperlab.discovery import find
from paperlab.errors import ConfigError
from paperlab.layers.block import Block

B, T, WIDTH = 2, 10, 8
QUICK = {"xla_backend_optimization_level": 0}
assert_close = partial(np.testing.assert_allclose, rtol=3e-5, atol=3e-5)
OPTIONS = {"gla": {"short_conv": True}, "attention": {"kv_heads": 1}}
MIDDLE = shared(6, 2, "middle_cycle")
EXPERT, TOKEN = Options(router="expert", alpha=1.0), Options(router="token", score="softmax", alpha=1.0)


def changed(options, **fields):
    return Options(**(vars(options) | fields))


ROUTED = [
    ("gla", MIDDLE, EXPERT),
    ("gla", loop(1, 3), TOKEN),
    ("gla,attention", loop(2, 2), changed(EXPERT, lora_rank=2, step_embedding=True, scale=True)),
    ("attention", MIDDLE, changed(EXPERT, kv="shared")),
    ("attention", loop(2, 3), changed(EXPERT, kv="update", gating="additive", score="tanh", net="mlp")),
    ("attention", loop(1, 3), changed(TOKEN, kv="shared", score="sigmoid", interleaved=4)),
]
PLAIN = [
    ("gla", shared(6, 3, "sequence"), Options(step_embedding=True)),
    ("attention", shared(4, 2, "cycle_rev"), Options(lora_rank=2)),
    ("gla,attention", loop(2, 2, before=1), Options(scale=True)),
    ("attention", parse("chain:0,2,2,1", 0), Options()),
    ("gla,attention", shared(4, 2, "sequence"), Options(interleaved=6)),
]
names = lambda row: f"{row[0]}-{row[2].router}-{row[2].kv}-{len(row[1])}"  # noqa: E731
ALL = pytest.mark.parametrize("row", PLAIN + ROUTED, ids=names)
WITH_ROUTER = pytest.mark.parametrize("row", ROUTED, ids=names)


def block(name):
    mixer = find("mixers", name).Mixer(WIDTH, 2, jnp.float32, **OPTIONS[name], parent=None)
    return Block(mixer, WIDTH, 16, parent=None)


class Trial:
    """A stack with large random weights."""

    def __init__(self, mixers, program, options):
        pattern = mixers.split(",")
        kinds = tuple(pattern[u % len(pattern)] for u in range(program.unique))
        self.model = Recursive(tuple((name, block(name)) for name in pattern), kinds, program, WIDTH, options)
        self.x = jax.random.normal(jax.random.key(0), (B, T, WIDTH))
        shapes = jax.eval_shape(self.model.init, jax.random.key(1), self.x)
        leaves, tree = jax.tree.flatten(shapes)
        keys = jax.random.split(jax.random.key(3), len(leaves))
        drawn = [0.4 * jax.random.normal(k, a.shape) for k, a in zip(keys, leaves, strict=True)]
        self.params = jax.tree.unflatten(tree, drawn)
        self.whole = jax.jit(self.model.apply, static_argnames=("select",), compiler_options=QUICK)
        self.step = jax.jit(partial(self.model.apply, method="step"), compiler_options=QUICK)

    def run(self, x=None, **more):
        return self.whole(self.params, self.x if x is None else x, select="threshold", **more)


@cache
def trial(row):
    return Trial(*row)


@pytest.mark.parametrize("mixers", ["gla", "attention", "gla,attention"])
@pytest.mark.parametrize(
    "program", [shared(4, 2, "cycle"), shared(6, 2, "middle_sequence"), loop(2, 3)], ids=lambda p: str(p.layers)
)
def test_tied_equals_untied_with_copied_weights(mixers, program):
    tied = Trial(mixers, program, Options())
    if "," in mixers:
        program_of_kinds = [tied.model.kinds[u] for u in program.layers]
        stacks = {
            kind: [
                jax.tree.map(lambda a, i=i: a[i], tied.params["params"]["layers"][kind])
                for i in range(tied.model.kinds.count(kind))
            ]
            for kind in set(tied.model.kinds)
        }
        index = {u: tied.model.kinds[:u].count(tied.model.kinds[u]) for u in range(program.unique)}
        layers = {
            kind: jax.tree.map(
                lambda *a: jnp.stack(a),
                *[stacks[kind][index[u]] for u in program.layers if tied.model.kinds[u] == kind],
            )
            for kind in stacks
        }
    else:
        program_of_kinds = [mixers] * len(program)
        layers = {mixers: untie(tied.params["params"]["layers"][mixers], program)}
    flat = Recursive(tied.model.blocks, tuple(program_of_kinds), plain(len(program)), WIDTH)
    got, _, _ = flat.apply({"params": {"layers": layers}}, tied.x)
    assert_close(got, tied.run()[0])


@ALL
def test_step_by_step_equals_whole(row):
    t = trial(row)
    state, outputs = t.model.zero_state(B, T), []
    for i in range(T):
        y, state = t.step(t.params, t.x[:, i], state, jnp.full((B,), i))
        outputs.append(y)
    whole, _, routed = t.run()
    assert_close(jnp.stack(outputs, 1), whole)
    if routed is not None:
        assert 0 < int(routed.taken[-1].sum()) < B * T or len(row[1]) == 3  # both ways are taken


@ALL
def test_split_with_carried_state_equals_whole(row):
    t = trial(row)
    left, carried, _ = t.run(t.x[:, :5], state=t.model.zero_state(B, T))
    right, _, _ = t.run(t.x[:, 5:], state=carried)
    assert_close(jnp.concatenate([left, right], 1), t.run()[0])


@ALL
def test_no_output_sees_a_later_input_or_another_row(row):
    t = trial(row)
    before = t.run()[0]
    for i in (0, 5, 9):
        after = t.run(t.x.at[0, i].add(1.0))[0]
        assert_close(after[0, :i], before[0, :i])
        assert_close(after[1], before[1])
        assert jnp.abs(after[0, i] - before[0, i]).max() > 1e-3
    assert_close(t.run(t.x[1:])[0], before[1:])


@pytest.mark.parametrize(
    ("row", "select"),
    [(row, "threshold") for row in ROUTED] + [(row, "topk") for row in ROUTED if row[2].router == "expert"],
    ids=lambda part: names(part) if isinstance(part, tuple) else part,
)
def test_padding_changes_nothing(row, select):
    t = trial(row)
    wide = jnp.concatenate([t.x, jnp.ones((B, 4, WIDTH))], 1)
    valid = jnp.broadcast_to(jnp.arange(T + 4) < T, (B, T + 4))
    run = partial(t.whole, t.params, select=select)
    got, _, routed = run(wide, valid=valid)
    assert_close(got[:, :T], run(t.x)[0])
    assert not bool(routed.taken[:, :, T:].any())


@WITH_ROUTER
def test_packed_equals_separate(row):
    t = trial(row)
    ids = jnp.broadcast_to(jnp.repeat(jnp.array([5, 2]), jnp.array([4, 6]), total_repeat_length=T), (B, T))
    parts = [t.run(part)[0] for part in (t.x[:, :4], t.x[:, 4:])]
    assert_close(t.run(segment_ids=ids)[0], jnp.concatenate(parts, 1))


@WITH_ROUTER
def test_a_few_sizes_to_choose_from_change_nothing(row):
    t = trial(row)
    model = t.model.clone(options=changed(t.model.options, sizes=(3, 6)))
    got = jax.jit(partial(model.apply, select="threshold"), compiler_options=QUICK)(t.params, t.x)[0]
    assert_close(got, t.run()[0])


@WITH_ROUTER
def test_gradients_reach_every_weight(row):
    t = trial(row)

    def loss(params):
        y, _, routed = t.model.apply(params, t.x)
        return (y**2).sum() + sum(routed.losses.values())

    grads = jax.jit(jax.grad(loss), compiler_options=QUICK)(t.params)
    assert all(bool(jnp.isfinite(g).all()) and float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(grads))


def test_expert_choice_takes_nested_sets_of_the_right_size():
    t = trial(ROUTED[0])
    _, _, routed = t.whole(t.params, t.x, select="topk")
    assert routed.taken.sum(-1).tolist() == [[10, 10], [5, 5]]
    assert bool((routed.taken[0] | ~routed.taken[1]).all())


def test_unselected_tokens_are_untouched_and_full_capacity_is_a_plain_loop():
    program = loop(1, 2)
    t = Trial("gla", program, changed(EXPERT, capacity=(0.5, 0.2)))
    y, _, routed = t.whole(t.params, t.x, select="topk")
    np.testing.assert_array_equal(y[~routed.taken[0]], t.x[~routed.taken[0]])
    full = t.model.clone(options=changed(EXPERT, capacity=(1.0, 1.0), gating="additive"))
    x = t.x
    for _ in range(2):
        one = jax.tree.map(lambda a: a[0], t.params["params"]["layers"]["gla"])
        x = x + dict(t.model.blocks)["gla"].apply({"params": one}, x)[0]
    assert_close(full.apply(t.params, t.x)[0], x)


def test_top_k_looks_ahead_and_a_threshold_does_not():
    t = trial(ROUTED[0])
    z = lambda x: t.whole(t.params, x, select="topk")[2].taken[1, 0]  # noqa: E731
    moved = [
        z(t.x.at[0, 9].set(s * jax.random.normal(jax.random.key(i), (WIDTH,))))[:9]
        for i in range(4)
        for s in (0.1, 5.0)
    ]
    assert any(bool((m != z(t.x)[:9]).any()) for m in moved)


def test_only_what_is_taken_is_computed():
    def flops(capacity):
        model = Trial("attention", loop(2, 2), changed(EXPERT, capacity=capacity)).model
        x = jax.ShapeDtypeStruct((1, 128, WIDTH), jnp.float32)
        params = jax.eval_shape(model.init, jax.random.key(0), x)
        return jax.jit(model.apply).lower(params, x).compile().cost_analysis()["flops"]

    full, half, tenth = flops((1.0, 1.0)), flops((1.0, 0.5)), flops((1.0, 0.1))
    assert half < 0.85 * full
    assert tenth < 0.65 * full


@pytest.mark.parametrize(
    ("mixers", "program", "options"),
    [
        ("gla", MIDDLE, changed(EXPERT, kv="shared")),
        ("gla", shared(4, 2, "sequence"), EXPERT),
        ("attention", MIDDLE, changed(EXPERT, score="softmax")),
        ("attention", MIDDLE, changed(EXPERT, capacity=(1.0,))),
        ("attention", MIDDLE, changed(EXPERT, capacity=(0.5, 0.4), kv="shared")),
        ("attention", MIDDLE, Options(kv="shared")),
        ("attention", MIDDLE, Options(router="both")),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(mixers, program, options):
    with pytest.raises(ConfigError) as error:
        Trial(mixers, program, options)
    assert str(error.value).startswith("config.model.recursion.")
    assert "\n" not in str(error.value)
