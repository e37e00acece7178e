"""Documents packed into one row: where they start, and what a carried state may reach.

A row holds documents one after another; `segment_ids_BxT` changes where one ends. A state carries the id of the last
token that it has seen, `segment_B` (-1 before the first token). The first token of a call continues that document when
the ids are equal or the carried one is -1. Without `segment_ids` every token belongs to the carried document.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

UNKNOWN = -1


def document_starts(segment_ids_BxT: Array, segment_B: Array | None = None) -> Array:
    """bool [B, T]: does a new document start here? Without a carried id the first token continues."""
    first = segment_ids_BxT[:, :1]
    carried = first if segment_B is None else jnp.where(segment_B[:, None] == UNKNOWN, first, segment_B[:, None])
    return segment_ids_BxT != jnp.concatenate([carried, segment_ids_BxT[:, :-1]], axis=1)


def runs(segment_ids_BxT: Array, segment_B: Array | None = None) -> Array:
    """int32 [B, T]: number of documents started so far in this call; run 0 continues what the state carries."""
    return jnp.cumsum(document_starts(segment_ids_BxT, segment_B).astype(jnp.int32), axis=1)


def last_start(starts_BxT: Array, time_BxT: Array, carried_B: Array) -> Array:
    """int32 [B, T]: time at which the document of each token started; `carried_B` is that of the document under way."""
    started = jnp.where(starts_BxT, time_BxT, carried_B[:, None])
    return lax.cummax(started, axis=1)


def keep_if_continued(tree, segment_ids_BxT: Array | None, segment_B: Array):
    """The carried arrays [B, ...], zeroed in the rows whose first token starts a new document."""
    if segment_ids_BxT is None:
        return tree
    keep_B = (segment_ids_BxT[:, 0] == segment_B) | (segment_B == UNKNOWN)
    return jax.tree.map(lambda a: jnp.where(keep_B.reshape((-1,) + (1,) * (a.ndim - 1)), a, 0), tree)


def next_segment(segment_ids_BxT: Array | None, segment_B: Array) -> Array:
    return segment_B if segment_ids_BxT is None else segment_ids_BxT[:, -1].astype(jnp.int32)
