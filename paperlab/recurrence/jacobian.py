"""State Jacobians of cells: automatic ones from the declared structure, and the check that the declaration is true.

    structure   tangents            layout of d step / d h
    diagonal    1, all ones         [..., n]
    blocks      K, one a variable   [..., K, K, n]
    heads       d, one an entry     [..., H, d, d]
    dense       d, one an entry     [..., d, d]

One tangent serves every channel (or head) at once, since channels (heads) do not mix: that is what the declaration says. Where it
is wrong the Jacobian is wrong without a word, Newton's method becomes a quasi-Newton one and gradients are wrong: `check_cell`.

Source: ParaRNN (arXiv 2510.21450), section 3; DEER (arXiv 2309.12252), section 3.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from paperlab.recurrence.newton_cell import Cell


def linearized(cell: Cell, params: Any, x: Any, h: Array) -> tuple[Array, Array]:
    """(step(params, x, h), d step / d h), the Jacobian in the layout of `block_scan`."""
    if cell.jacobian is not None:
        return cell.step(params, x, h), cell.jacobian(params, x, h).astype(h.dtype)
    after, push = jax.linearize(lambda h: cell.step(params, x, h), h)
    columns = jax.vmap(push)(_tangents(cell, h))
    if cell.structure == "diagonal":
        return after, columns[0]
    return after, jnp.moveaxis(columns, 0, -2 if cell.structure == "blocks" else -1)


def linearized_diagonal(cell: Cell, params: Any, x: Any, h: Array) -> tuple[Array, Array]:
    """(step(params, x, h), the diagonal of d step / d h), both shaped like h."""
    if cell.diagonal is not None:
        return cell.step(params, x, h), cell.diagonal(params, x, h).astype(h.dtype)
    after, A = linearized(cell, params, x, h)
    return after, diagonal(cell.structure, A)


def _tangents(cell: Cell, h: Array) -> Array:
    """[m, ...]: the directions in which a step is differentiated."""
    if cell.structure == "diagonal":
        return jnp.ones_like(h)[None]
    which = 0 if cell.structure == "blocks" else len(cell.state) - 1
    count, ndim = cell.state[which], h.ndim
    shape = [count] + [1] * ndim
    shape[1 + ndim - len(cell.state) + which] = count
    return jnp.broadcast_to(jnp.eye(count, dtype=h.dtype).reshape(shape), (count, *h.shape))


def diagonal(structure: str, A: Array) -> Array:
    """The diagonal of a Jacobian, shaped like a state."""
    if structure == "diagonal":
        return A
    return jnp.einsum("...iin->...in" if structure == "blocks" else "...ii->...i", A)


def transposed(structure: str, A: Array) -> Array:
    """The transpose of every block or matrix."""
    if structure == "diagonal":
        return A
    return A.swapaxes(-2, -3) if structure == "blocks" else A.swapaxes(-1, -2)


def identity(structure: str, state: tuple[int, ...], dtype: Any) -> Array:
    """The Jacobian of a step that leaves the state alone; broadcasts."""
    if structure == "diagonal":
        return jnp.ones(state, dtype)
    eye = jnp.eye(state[0] if structure == "blocks" else state[-1], dtype=dtype)
    return eye[..., None] if structure == "blocks" else eye


def as_matrix(structure: str, A: Array) -> Array:
    """[..., N, N] over all N entries of a state."""
    if structure == "diagonal":
        return A[..., None] * jnp.eye(A.shape[-1], dtype=A.dtype)
    if structure == "dense":
        return A
    if structure == "blocks":
        K, n = A.shape[-2:]
        full = jnp.einsum("...ijn,nm->...injm", A, jnp.eye(n, dtype=A.dtype))
        return full.reshape(*A.shape[:-3], K * n, K * n)
    H, d = A.shape[-3:-1]
    full = jnp.einsum("...hij,hg->...higj", A, jnp.eye(H, dtype=A.dtype))
    return full.reshape(*A.shape[:-3], H * d, H * d)


def check_cell(
    cell: Cell, params: Any, x: Any, h: Array | None = None, *, samples: int = 4, tolerance: float = 1e-6, seed: int = 0
) -> None:
    """Compares the declared Jacobian with the full derivative of the step, at a few positions. Not for use inside jit.

    Args:
      x: inputs of any number of positions, leaves [..., features] with the same leading axes.
      h: states to look at, [..., *state]; standard normal ones if omitted.
      samples: how many positions, drawn with `seed`.
      tolerance: how large an entry outside the structure may be, and by how much (relative to the largest entry) an explicit
        `jacobian` or `diagonal` may differ; never less than 100 roundings of the dtype.

    Raises:
      ValueError: the step mixes what it is declared not to mix, an explicit Jacobian is not the derivative, or a shape is wrong.
    """
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((params, x, h))):
        raise ValueError("check_cell needs values: call it outside jit, vmap and grad")
    x, h = _positions(cell, x, h, samples, seed)
    after = jax.eval_shape(cell.step, params, x, h)
    if after.shape != h.shape:
        raise ValueError(f"cell.step must return states like {h.shape[1:]}, got {after.shape[1:]}")
    size = int(np.prod(cell.state))

    @jax.jit
    def derivatives(params: Any, x: Any, h: Array) -> tuple[Array, Array, Array]:
        """The full one [samples, size, size], the declared one, its diagonal."""
        full = jax.vmap(jax.jacfwd(lambda h, x: cell.step(params, x, h)))(h, x)
        A, own = linearized(cell, params, x, h)[1], linearized_diagonal(cell, params, x, h)[1]
        return full.reshape(-1, size, size), A, own.reshape(-1, size)

    full, A, own_diagonal = (np.asarray(a) for a in derivatives(params, x, h))
    full = full.astype(np.float64)
    if not np.isfinite(full).all():
        raise ValueError("cell.step has a derivative that is not finite")
    if A.shape[1:] != _layout(cell):
        raise ValueError(f"cell.jacobian must return [..., {', '.join(map(str, _layout(cell)))}], got {A.shape[1:]}")
    inside = np.asarray(as_matrix(cell.structure, jnp.ones_like(A)))
    outside = np.abs(full) * (1 - inside)
    if outside.max() > tolerance:
        _, to, of = np.unravel_index(outside.argmax(), outside.shape)
        to, of = (tuple(map(int, np.unravel_index(i, cell.state))) for i in (to, of))
        hint = "'dense'" if len(cell.state) == 1 else "'dense' with a flat state"
        raise ValueError(
            f"structure={cell.structure!r} is not true of cell.step: state{list(to)} depends on state{list(of)}"
            f" (derivative up to {outside.max():.2g}); declare {hint}"
        )
    bound = max(tolerance, 100 * float(jnp.finfo(h.dtype).eps)) * max(1.0, np.abs(full).max())
    found = {"jacobian": np.asarray(as_matrix(cell.structure, jnp.asarray(A)), np.float64) - full * inside}
    found["diagonal"] = own_diagonal.astype(np.float64) - np.diagonal(full, axis1=1, axis2=2)
    for name, error in found.items():
        if not np.abs(error).max() <= bound:
            raise ValueError(
                f"cell.{name} is not the derivative of cell.step: wrong by up to {np.abs(error).max():.2g}"
            )


def _positions(cell: Cell, x: Any, h: Array | None, samples: int, seed: int) -> tuple[Any, Array]:
    """A few positions of x and h, drawn at random: leaves [samples, ...]."""
    random = np.random.default_rng(seed)
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(x)]
    lead = min((leaf.shape[:-1] for leaf in leaves), key=len) if h is None else h.shape[: h.ndim - len(cell.state)]
    if any(leaf.shape[: len(lead)] != lead for leaf in leaves):
        raise ValueError(f"leaves of x must share their leading axes {lead}, got {[leaf.shape for leaf in leaves]}")
    picked = random.integers(0, int(np.prod(lead)), samples)
    x = jax.tree.map(lambda leaf: jnp.asarray(leaf).reshape(-1, *np.shape(leaf)[len(lead) :])[picked], x)
    if h is not None:
        return x, h.reshape(-1, *cell.state)[picked]
    wide = jnp.result_type(jnp.float32, *(leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)))
    return x, jnp.asarray(random.standard_normal((samples, *cell.state)), wide)


def _layout(cell: Cell) -> tuple[int, ...]:
    if cell.structure == "blocks":
        return (cell.state[0], *cell.state)
    return cell.state if cell.structure == "diagonal" else (*cell.state, cell.state[-1])
