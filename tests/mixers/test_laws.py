"""Laws of every sequence mixer, one table: a new file in paperlab/mixers is tested by itself, its options by ROWS.

step by step == whole;  split anywhere with carried state == whole;  packed == separate;  no output sees a later input.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paperlab.discovery import find, names

B, T, WIDTH, HEADS = 2, 12, 16, 4
ROWS = {
    "gla": [
        {},
        {"gate": "scalar", "kv_heads": 2},
        {"gate": "fixed", "kv_heads": 1, "norm": "layer", "norm_per_head": True, "short_conv": True},
        {"gate": "none", "feature_map": "elu+1", "use_output_gate": False, "norm_affine": False},
        {"gate_beta": True, "norm": "none", "gate_low_rank": 0, "expand_k": 1.0, "weight_init": "xavier"},
    ],
    "pararnn": [
        {},
        {"cell": "lstm", "mode": "parallel", "iterations": 12},
        {"cell": "linear", "mode": "parallel", "reduction": "chunked", "chunk": 4, "gate": False, "expand": 2.0},
        {"cell": "elman", "mode": "parallel", "method": "quasi", "iterations": 12, "short_conv": False},
        {"cell": "heads", "mode": "parallel", "iterations": 12, "window": 5, "bare": True},
        {"cell": "lstm", "mode": "parallel_fused", "iterations": 12, "init_style": "paper"},
        {"cell": "gru", "mode": "parallel_kernel", "impl": "interpret", "iterations": 12, "nonlinearity": "silu"},
    ],
    "plstm": [
        {},
        {"JT": 1, "JV": 1, "JO": 1, "gate_inputs": "T", "levels": 2},
        {"JT": 2, "JK": 2, "JV": 1, "JQ": 2, "JO": 2, "DK": 3, "orthogonal": "householder", "impl": "hierarchical"},
        {"JT": 2, "JV": 2, "JO": 1, "orthogonal": "qr", "symmetric": True, "conv_inputs": "QKV", "impl": "sequential"},
        {"JT": 1, "JV": 2, "JO": 2, "eigenvalues": "expexp", "short_conv": False, "passthrough": False, "norm": False},
    ],
    "attention": [{}, {"window": 5, "kv_heads": 2, "bias": True}, {"position": "learned", "max_positions": 12}],
}
CASES = [(name, row) for name in names("mixers") for row in ROWS.get(name, [{}])]
MIXERS = pytest.mark.parametrize(
    ("name", "row"), CASES, ids=[f"{name}-{'-'.join(map(str, row.values())) or 'default'}" for name, row in CASES]
)
QUICK = {"xla_backend_optimization_level": 0}  # compiling is what these tests spend their time on
close = partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5)


class Trial:
    """A mixer with large random weights, so that gates, norms and biases all matter."""

    def __init__(self, name: str, row: dict):
        self.mixer = find("mixers", name).Mixer(WIDTH, HEADS, jnp.float32, **row)
        x = jax.random.normal(jax.random.key(0), (B, T, WIDTH))
        shapes = jax.eval_shape(self.mixer.init, jax.random.key(1), x)
        leaves, tree = jax.tree.flatten(shapes)
        keys = jax.random.split(jax.random.key(2), len(leaves))
        drawn = [0.3 * jax.random.normal(k, a.shape) for k, a in zip(keys, leaves, strict=True)]
        self.x, self.params = x, jax.tree.unflatten(tree, drawn)
        self.whole = jax.jit(self.mixer.apply, compiler_options=QUICK)
        self.step = jax.jit(partial(self.mixer.apply, method="step"), compiler_options=QUICK)

    def zero_state(self, max_len: int = T):
        return self.mixer.zero_state(B, max_len, jnp.float32)

    def run(self, x, state=None, segment_ids=None, positions=None):
        return self.whole(self.params, x, state=state, segment_ids=segment_ids, positions=positions)


@cache
def _trial(name: str, row: tuple) -> Trial:
    return Trial(name, dict(row))


def trial(name: str, row: dict) -> Trial:
    return _trial(name, tuple(row.items()))


def same_states(got, want):
    jax.tree.map(close, got, want)


@MIXERS
def test_step_by_step_equals_whole(name, row):
    t = trial(name, row)
    whole, last = t.run(t.x, t.zero_state())
    state, outputs = t.zero_state(), []
    for i in range(T):
        y, state = t.step(t.params, t.x[:, i], state, jnp.full((B,), i))
        outputs.append(y)
    close(jnp.stack(outputs, 1), whole)
    same_states(state, last)
    close(t.run(t.x)[0], whole)


@MIXERS
@pytest.mark.parametrize("cut", [4, 8])
def test_split_with_carried_state_equals_whole(name, row, cut):
    t = trial(name, row)
    whole, last = t.run(t.x, t.zero_state())
    left, carried = t.run(t.x[:, :cut], t.zero_state())
    right, end = t.run(t.x[:, cut:], carried)
    close(jnp.concatenate([left, right], 1), whole)
    same_states(end, last)


@MIXERS
def test_packed_equals_separate(name, row):
    """Three documents of four tokens, the first and the last of one id; positions given or found."""
    t = trial(name, row)
    ids = jnp.broadcast_to(jnp.repeat(jnp.array([7, 3, 7]), 4), (B, T))
    packed, last = t.run(t.x, t.zero_state(), ids)
    parts = [t.run(t.x[:, i : i + 4], t.zero_state()) for i in (0, 4, 8)]
    close(packed, jnp.concatenate([y for y, _ in parts], 1))
    close(t.run(t.x, None, ids, jnp.broadcast_to(jnp.arange(T) % 4, (B, T)))[0], packed)
    following, alone = (t.step(t.params, t.x[:, 0], s, jnp.full((B,), 4))[0] for s in (last, parts[-1][1]))
    close(following, alone)


@MIXERS
@pytest.mark.parametrize("cut", [4, 8])
def test_packed_and_split_equals_packed(name, row, cut):
    """The cuts lie at a border in one row and inside a document in the other."""
    t = trial(name, row)
    ids = jnp.stack([jnp.arange(T) // 4, (jnp.arange(T) + 2) // 4])
    whole, last = t.run(t.x, t.zero_state(), ids)
    left, carried = t.run(t.x[:, :cut], t.zero_state(), ids[:, :cut])
    right, end = t.run(t.x[:, cut:], carried, ids[:, cut:])
    close(jnp.concatenate([left, right], 1), whole)
    close(end["segment"], last["segment"])
    close(t.run(t.x, end)[0], t.run(t.x, last)[0])


@MIXERS
def test_no_output_depends_on_a_later_input_or_another_row(name, row):
    t = trial(name, row)
    before = t.run(t.x)[0]
    for i in (1, 6, 11):
        changed = t.run(t.x.at[0, i].add(1.0))[0]
        np.testing.assert_array_equal(changed[0, :i], before[0, :i])
        np.testing.assert_array_equal(changed[1], before[1])
        assert jnp.abs(changed[0, i] - before[0, i]).max() > 1e-3


@MIXERS
def test_states_keep_shape_and_precision(name, row):
    t = trial(name, row)
    state = t.mixer.zero_state(B, T)
    shapes = jax.tree.map(lambda a: (a.shape, a.dtype), state)
    assert all(a.shape[0] == B for a in jax.tree.leaves(state))
    _, after = t.run(t.x, state)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), after) == shapes
    _, after = t.step(t.params, t.x[:, 0], after, jnp.full((B,), T))
    assert jax.tree.map(lambda a: (a.shape, a.dtype), after) == shapes
    assert {a.dtype.name for a in jax.tree.leaves(state)} <= {"float32", "int32"}


@MIXERS
def test_half_precision_stays_near(name, row):
    t = trial(name, row)
    half = t.mixer.clone(dtype=jnp.bfloat16)
    got, state = jax.jit(half.apply, compiler_options=QUICK)(
        t.params, t.x.astype(jnp.bfloat16), state=half.zero_state(B, T)
    )
    assert got.dtype == jnp.bfloat16
    want = t.run(t.x)[0]
    assert jnp.linalg.norm(got - want) < 0.05 * jnp.linalg.norm(want)
    if name == "gla":
        assert state["S"].dtype == jnp.float32


@pytest.mark.parametrize("impl", ["parallel", "chunked", "associative"])
def test_gradients_of_every_gla_implementation_equal_the_recurrent_ones(impl):
    t = trial("gla", {})
    ids = jnp.stack([jnp.arange(T) // 5, jnp.arange(T) // 7])
    start = jax.tree.map(lambda a: a + 1, t.zero_state())  # S = 1, segment = 0: the first document goes on

    def gradients(impl):
        def loss(params, x, S):
            mixer = t.mixer.clone(impl=impl, chunk=8, sub_chunk=2)
            y, state = mixer.apply(params, x, state={**start, "S": S}, segment_ids=ids)
            return jnp.sum(jnp.sin(y)) + jnp.sum(jnp.cos(state["S"]))

        return jax.jit(jax.grad(loss, (0, 1, 2)), compiler_options=QUICK)(t.params, t.x, start["S"])

    jax.tree.map(partial(close, atol=1e-4), gradients(impl), gradients("recurrent"))
