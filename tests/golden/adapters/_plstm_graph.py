"""Known answers of pLSTM on graphs: the memory on given edges, pruned for D-mode, with every gradient of sum(w * out)."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from paperlab.papers.plstm.graph import Wiring, graph_memory
from paperlab.recurrence import dag

ARRAYS = ("query", "key", "value", "source", "transition", "mark", "direct")


def graph(options: dict, inputs: dict, params: dict) -> dict:
    """Nodes and edges stand first here, heads in the file."""
    arrays = {name: jnp.asarray(a) for name, a in (inputs | params).items() if name in ARRAYS}
    edges, arcs = np.asarray(inputs["edges"]), np.asarray(inputs["line_edges_full"])
    if options.get("line_edges_is_pruned_multitree", options["mode"] == "D"):
        arcs = dag.prune_to_multitree(edges, arcs)
    places = jnp.zeros(len(edges), jnp.int32)
    wiring = Wiring(*jnp.asarray(edges).T, places, places, jnp.asarray(arcs), dag.schedule(len(edges), arcs))

    def out(arrays: dict) -> Array:
        turned = [jnp.swapaxes(arrays[name], 0, 1) for name in ARRAYS]
        return jnp.swapaxes(graph_memory(*turned, wiring), 0, 1) * options.get("score_scale", 1.0)

    found, vjp = jax.vjp(out, arrays)
    results = {"out": found, "line_edges": arcs}
    if "w" in inputs:
        results |= {f"grad_{name}": g for name, g in vjp(jnp.asarray(inputs["w"]))[0].items()}
    return results


KINDS = {"graph": graph}
