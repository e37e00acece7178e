"""The orders in which a linear recurrence can be evaluated, behind one function.

sequential    T steps, work T, memory 1 beside the output            lax.scan, the definition
in_place      the same, without moving the time axis to the front    lax.fori_loop over slices; gradient in one pass
associative   2 log2 T levels, work 2 T compositions, memory T       lax.associative_scan
chunked       T/C steps, work 2 T compositions, memory T             associative inside chunks of C, lax.scan between them
"""

import jax
import jax.numpy as jnp

from paperlab.recurrence import affine
from paperlab.recurrence.affine import CHUNK, Structure, Tree
from paperlab.recurrence.in_place import in_place


def scan(
    structure: Structure,
    A: Tree,
    b: Tree,
    h0: Tree,
    *,
    impl: str,
    axis: int = 0,
    reverse: bool = False,
    chunk: int = CHUNK,
) -> tuple[Tree, Tree]:
    """Runs the recurrence along one axis.

    Args:
      A: coefficients; the leaves have the time at `axis`, of size 1 where they are the same at every step; other axes broadcast
        against b's.
      b: inputs, leaves of one floating dtype, which is the dtype of everything here.
      h0: the state before the first step (with `reverse`: after the last), shaped like b without its time axis.
      impl: "sequential", "in_place", "associative" or "chunked".
      axis: of every leaf, counted from the front.

    Returns:
      (h, last): every state, shaped like b, and the one that the recurrence ends with.
    """
    if impl == "in_place":
        return in_place(structure, axis, reverse, A, b, h0)
    A, b = (jax.tree.map(lambda x: jnp.moveaxis(x, axis, 0), tree) for tree in (A, b))
    if impl == "sequential":
        h, last = affine.sequential(structure, A, b, h0, reverse)
    else:
        h, last = affine.solve(structure, impl, reverse, chunk, A, b, h0)
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, axis), h), last
