"""Where to read out: the first loop whose answer is good enough.

    rule          exits at the first loop r where                                  needs the deeper loops
    oracle        argmax of loop r == argmax of the last loop                      yes: a bound, not a method
    confidence    max p_r > threshold                                              no
    margin        the two largest p_r differ by more than threshold                no
    entropy       - sum p_r log p_r < threshold (nats)                             no

The last loop always exits. Source: Relaxed Recursive Transformers (arXiv 2410.20672, section 3.7); confidence as in CALM
(2207.07061).
"""

import jax
import jax.numpy as jnp
from jax import Array

RULES = ("oracle", "confidence", "margin", "entropy")


def exit_loops(logits_RxN: Array, rule: str, threshold: float = 0.9) -> Array:
    """The loop at which each row exits.

    Args:
      logits_RxN: [R, ..., V], the logits after every loop.
      rule: see above.
      threshold: of a probability, a difference of probabilities, or nats; the oracle has none.

    Returns:
      int32 [...], 0 .. R - 1.

    Raises:
      ValueError: a rule that there is not.
    """
    if rule not in RULES:
        raise ValueError(f"rule={rule!r}: choose one of {', '.join(RULES)}")
    R = logits_RxN.shape[0]
    if rule == "oracle":
        answers = logits_RxN.argmax(-1)
        good = answers == answers[-1]
    else:
        good = good_enough(logits_RxN, rule, threshold)
    return jnp.argmax(good.at[R - 1].set(True), axis=0).astype(jnp.int32)


def good_enough(logits: Array, rule: str, threshold: float) -> Array:
    """bool [...]: whether these logits [..., V] may be taken, by a rule that looks at no other loop."""
    log_p = jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), axis=-1)
    if rule == "confidence":
        return jnp.exp(log_p.max(-1)) > threshold
    if rule == "margin":
        first, second = jnp.moveaxis(jax.lax.top_k(jnp.exp(log_p), 2)[0], -1, 0)
        return first - second > threshold
    if rule == "entropy":
        return -(jnp.exp(log_p) * jnp.where(jnp.isfinite(log_p), log_p, 0)).sum(-1) < threshold
    raise ValueError(f"rule={rule!r}: choose confidence, margin or entropy")


def read_out(per_loop: Array, loops: Array) -> Array:
    """What each row's exit holds: [R, ..., V] and int [...] -> [..., V]."""
    return jnp.take_along_axis(per_loop, loops[None, ..., None], axis=0)[0]
