"""pLSTM on graphs: a linear memory on the edges of a directed acyclic graph, and the layer around it.

    C_e = sum over arcs (e', e) of T_{e'e} C_{e'} + S_e k_a v_a^T          e = (a, b)
    h_n = sum over e into n of M_e q_n C_e + D_n (q_n k_n) v_n             no scale

P-mode divides the transitions that leave an edge by 0.5 + the sum of their magnitudes, so that no more leaves an edge than was in
it. D-mode takes tanh of them on a multitree, where one path at most joins two edges.

Gates come from node and edge features, never from states. `gates="edge"`: one number for each edge (arc) from the features of its
ends and of itself. `gates="node"`: a node has a number for each of its `slots` edges; S belongs to the edge's tail and its place
among the edges that leave, M to its head and its place among those that enter, T to the node between two edges. (The reference
reads S and M at the other ends; this follows the paper.)

Source: pLSTM (arXiv 2506.11997), section 4, equations 5 and 6; gates: specification section 3.1.
"""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.nn.initializers import Initializer, constant, normal, zeros
from jax.typing import DTypeLike

from paperlab.layers.linear import linear, matmul
from paperlab.layers.norms import RMSNorm, at_least_float32
from paperlab.layers.sharding import by_rows
from paperlab.recurrence.dag import Schedule, dag_scan
from paperlab.recurrence.dag_blocks import taken

MODES = ("P", "D")
GATES = ("edge", "node")
KEEP = 0.5  # of P-mode: what is added to the sum of magnitudes


class Wiring(NamedTuple):
    """One graph (or a disjoint union of some) in one direction, for one mode; integers, padded with the size of what they point at.

    tails, heads: [E] nodes; exits, entries: [E] place of the edge among those that leave its tail, that enter its head;
    arcs: [L, 2] (earlier edge, later edge); schedule: of these arcs.
    """

    tails: Array
    heads: Array
    exits: Array
    entries: Array
    arcs: Array
    schedule: Schedule


def graph_memory(
    q: Array,
    k: Array,
    v: Array,
    source: Array,
    transition: Array,
    mark: Array,
    direct: Array,
    wiring: Wiring,
    *,
    impl: str = "auto",
) -> Array:
    """What every node reads.

    Args:
      q, k: [N, H, DK];  v: [N, H, DV], real floating point;  source, mark: [E, H];  transition: [L, H];  direct: [N, H].
      wiring: of one graph.
      impl: as in `paperlab.recurrence.dag.dag_scan`.

    Returns:
      [N, H, DV] in float32 (float64).
    """
    q, k, v, source, transition, mark, direct = map(at_least_float32, (q, k, v, source, transition, mark, direct))
    written = jnp.einsum("eh,ehk,ehv->ehkv", source, taken(k, wiring.tails), taken(v, wiring.tails))
    C = dag_scan(transition, written, wiring.schedule, wiring.arcs, impl=impl)
    seen = jnp.einsum("eh,ehk,ehkv->ehv", mark, taken(q, wiring.heads), C)
    read = jax.ops.segment_sum(seen, wiring.heads, num_segments=q.shape[0])
    return read + direct[..., None] * (q * k).sum(-1, keepdims=True) * v


def p_mode(t: Array, arcs: Array, edges: int) -> Array:
    """[L, H] transitions whose magnitudes sum to less than one over the arcs that leave an edge."""
    total = jax.ops.segment_sum(jnp.abs(t), arcs[:, 0], num_segments=edges)
    return t / (KEEP + taken(total, arcs[:, 0]))


def stabilised(t: Array, arcs: Array, edges: int, mode: str) -> Array:
    """The transitions of a mode, from any real numbers [L, H]."""
    return p_mode(t, arcs, edges) if mode == "P" else jnp.tanh(t)


class GraphLayer(nn.Module):
    """[R, N, width] -> the same, on R graphs (unions of graphs).

    edge_width: of the edge features (0: none).  slots: edges of a node, for node-wise gates.  key_width, value_width: of a head
    (0: width / heads).  gate_bias, transition_std, transition_diagonal: where the gates start; their weights start at 0, so a
    transition starts as a number for each head, drawn from N(0, transition_std), or (node-wise) as transition_diagonal from every
    place among the entering edges to the same place among the leaving.
    """

    width: int
    heads: int
    mode: str = "P"
    gates: str = "edge"
    edge_width: int = 0
    slots: int = 0
    key_width: int = 0
    value_width: int = 0
    gate_bias: float = -5.0
    transition_std: float = 10.0
    transition_diagonal: float = 10.0
    bias: bool = False
    norm_eps: float = 1e-5
    impl: str = "auto"
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        H, DK, DV = self.heads, self.key_width or self.width // self.heads, self.value_width or self.width // self.heads
        dense = partial(linear, dtype=self.dtype, bias=self.bias, std=(2 / (5 * self.width)) ** 0.5)
        self.q, self.k, self.v = dense(H * DK), dense(H * DK), dense(H * DV)
        shape = (H,) if self.gates == "edge" else (self.slots, H)
        gate = partial(Gate, dtype=self.dtype, bias_init=constant(self.gate_bias))
        self.source, self.mark, self.direct = gate(shape), gate(shape), gate((H,))
        if self.gates == "edge":
            self.transition = Gate((H,), normal(self.transition_std), self.dtype)
        else:
            self.transition = Gate((self.slots, self.slots, H), _diagonal(self.transition_diagonal), self.dtype)
        self.norm = RMSNorm(self.norm_eps, shape=(H, DV))
        self.out = dense(self.width)

    def __call__(self, x: Array, edges: Array | None, wiring: Wiring) -> Array:
        """x [R, N, width]; edges [R, E, edge_width] or None; wiring: leaves with a leading axis R."""
        q, k, v = (y.reshape(*x.shape[:2], self.heads, -1) for y in (self.q(x), self.k(x), self.v(x)))
        source, transition, mark = (self._of_edges if self.gates == "edge" else self._of_nodes)(x, edges, wiring)
        normalised = partial(stabilised, edges=wiring.tails.shape[1], mode=self.mode)
        transition = jax.vmap(normalised)(transition, wiring.arcs)
        gates = (jax.nn.sigmoid(source), transition, jax.nn.sigmoid(mark), jax.nn.sigmoid(self.direct(x)))
        h = by_rows(jax.vmap(partial(graph_memory, impl=self.impl)), q, k, v, *gates, wiring)
        if self.is_mutable_collection("intermediates"):
            self.sow("intermediates", "transition", transition)
        return self.out(self.norm(h).astype(self.dtype).reshape(*x.shape[:2], -1))

    def _of_edges(self, x: Array, edges: Array | None, wiring: Wiring) -> tuple[Array, Array, Array]:
        at = jax.vmap(taken)
        earlier, later = wiring.arcs[..., 0], wiring.arcs[..., 1]
        shared = at(wiring.heads, earlier)  # padding finds node 0, and is never read
        ends = at(x, wiring.tails), at(x, wiring.heads), at(x, shared)
        if edges is None:
            return self.source(ends[0]), self.transition(ends[2]), self.mark(ends[1])
        beside = [jnp.concatenate([end, edges], -1) for end in ends[:2]]
        around = jnp.concatenate([at(edges, earlier), at(edges, later), ends[2]], -1)
        return self.source(beside[0]), self.transition(around), self.mark(beside[1])

    def _of_nodes(self, x: Array, edges: Array | None, wiring: Wiring) -> tuple[Array, Array, Array]:
        del edges

        def one(source: Array, transition: Array, mark: Array, wiring: Wiring) -> tuple[Array, Array, Array]:
            earlier, later = wiring.arcs[:, 0], wiring.arcs[:, 1]
            s = source.at[wiring.tails, wiring.exits].get(mode="fill", fill_value=0)
            m = mark.at[wiring.heads, wiring.entries].get(mode="fill", fill_value=0)
            places = taken(wiring.heads, earlier), taken(wiring.entries, earlier), taken(wiring.exits, later)
            return s, transition.at[places].get(mode="fill", fill_value=0), m

        return jax.vmap(one)(self.source(x), self.transition(x), self.mark(x), wiring)


class Gate(nn.Module):
    """x W + b in float32, of any trailing shape; W starts at 0."""

    shape: tuple[int, ...]
    bias_init: Initializer
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        features = 1
        for size in self.shape:
            features *= size
        kernel = self.param("kernel", zeros, (x.shape[-1], features), jnp.float32)
        bias = self.param("bias", self.bias_init, self.shape, jnp.float32)
        y = at_least_float32(matmul(x.astype(self.dtype), kernel.astype(self.dtype)))
        return y.reshape(*x.shape[:-1], *self.shape) + bias


def _diagonal(value: float) -> Initializer:
    """[slots, slots, H]: `value` where both places are the same, else 0."""

    def init(key: Array, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None) -> Array:
        del key, out_sharding
        return value * jnp.broadcast_to(jnp.eye(shape[0], dtype=dtype)[..., None], shape)

    return init
