"""Rows of the law table: the recurrence with gates along a sequence (pLSTM), plain and with state-tracking sizes."""

from functools import partial

import jax
import jax.numpy as jnp

from paperlab.recurrence.line import Gates, line_memory
from tests.recurrence.laws import Law

B, DK, DV = 2, 3, 2
PLAIN = {"JT": 1, "JK": 1, "JV": 1, "JQ": 1, "JO": 1}
STATES = {"JT": 3, "JK": 2, "JV": 2, "JQ": 2, "JO": 2}
SHAPES = {
    "q": (DK, "JQ"),
    "k": (DK, "JK"),
    "v": (DV, "JV"),
    "source": ("JT", "JK", "JV"),
    "transition": ("JT", "JT"),
    "mark": ("JO", "JQ", "JT"),
    "direct": ("JO", "JQ", "JK", "JV"),
}


def draw(T, seed, dtype, *, J):
    """Transitions whose rows add up to less than one, so that states stay of one size over any length."""
    keys = jax.random.split(jax.random.key(seed), len(SHAPES) + 1)
    sizes = {name: [J.get(n, n) for n in shape] for name, shape in SHAPES.items()}
    args = {name: jax.random.normal(key, (B, T, *sizes[name])) for name, key in zip(SHAPES, keys, strict=False)}
    args["transition"] = jnp.tanh(args["transition"]) * (1.2 / J["JT"])
    args["entering"] = jax.random.normal(keys[-1], (B, DK, DV, J["JT"]))
    return jax.tree.map(lambda x: x.astype(dtype), args)


def run(args, *, reverse=False, **options):
    assert not reverse
    gates = Gates(args["source"], args["transition"], args["mark"])
    q, k, v, direct, entering = (args[name] for name in ("q", "k", "v", "direct", "entering"))
    return line_memory(q, k, v, gates, direct, entering=entering, chunk=16, **options)


def law(name, J, impls, lengths):
    return Law(
        f"line/{name}",
        partial(draw, J=J),
        run,
        impls,
        tuple(SHAPES),
        state="entering",
        reversible=False,
        lengths=lengths,
    )


LAWS = [
    law("plain", PLAIN, ("associative", "chunked"), (1, 65)),
    law("states", STATES, ("chunked", "hierarchical"), (2, 63)),
]
