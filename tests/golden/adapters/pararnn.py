"""Known answers of ParaRNN through the cells of paperlab and the solver of paperlab.recurrence.

    gru_cell, lstm_cell, elman_cell   trajectory, guess, Newton iterates, Jacobians, adjoint and gradients of one cell
    linear_solve                      s_t = J_t s_{t-1} + r_t by the parallel reduction, for every Jacobian structure

Where Newton converges the trajectory and the gradients are those of the parallel form, iterated to a tolerance; where the case says
that it does not, those of the sequential form. Flat states are (variable, channel), variables in `state_order`.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from paperlab.layers.recurrent_cell import recipe
from paperlab.recurrence.block import block_scan
from paperlab.recurrence.jacobian import linearized
from paperlab.recurrence.newton import newton_iterates, newton_solve
from paperlab.recurrence.newton_cell import Cell, Solver
from paperlab.recurrence.newton_loop import adjoint
from paperlab.recurrence.newton_system import Reduction, System, entering

GATES = {"gru": ("z", "r", "c"), "lstm": ("f", "o", "c"), "elman": ()}
VARIABLES = {"gru": ("h",), "lstm": ("c", "h"), "elman": ("h",)}
STATES = ("h0", "s0", "state0", "initial_state")
REDUCTION = Reduction("associative", 64)
EXACT = Solver(tolerance=1e-13)
ITERATES = 4


def run(kind: str, options: dict, inputs: dict, params: dict) -> dict:
    """Every array that a case of pararnn may ask for."""
    arrays = jax.tree.map(jnp.asarray, inputs), jax.tree.map(jnp.asarray, params)
    if kind == "linear_solve":
        return linear_solve(options, *arrays)
    if kind.removesuffix("_cell") in GATES:
        return cell_answers({"cell": kind.removesuffix("_cell")} | options, *arrays)
    raise ValueError(f"pararnn: unknown kind {kind!r}")


def linear_solve(options: dict, inputs: dict, params: dict) -> dict:
    """The solution under the name that goes with those of J and r."""
    named = {name.rpartition("_")[2]: (name, array) for name, array in (inputs | params).items()}
    (J_name, J), (_, r) = named["J"], named["r"]
    structure, K = options["structure"], options.get("block_size") or 1
    prefix = J_name.removesuffix("J")
    if structure.startswith("block"):
        n = r.shape[-1] // K
        J = J.reshape(*r.shape[:2], K, n, K).swapaxes(-1, -2)
        r = r.reshape(*r.shape[:2], K, n)
    start = next((named[key][1].reshape(r.shape[:1] + r.shape[2:]) for key in STATES if key in named), None)
    name = {"diag": "diagonal", "dense": "dense", "head": "heads", "heads": "heads"}.get(structure, "blocks")
    s, last = block_scan(J, r, start, structure=name, impl="associative")
    return {f"{prefix}sol": s.reshape(*s.shape[:2], -1) if name == "blocks" else s, f"{prefix}last": last}


def cell_answers(options: dict, inputs: dict, params: dict) -> dict:
    """Everything that is known of one cell, in the layout of its file."""
    x, w = inputs["x"], inputs["w"]
    cell, order = _cell(options, params), _state_order(options)
    h0 = next((_unflat(inputs[key], cell, order) for key in STATES if key in inputs), None)
    h0 = jnp.zeros((x.shape[0], *cell.state), x.dtype) if h0 is None else h0
    converges = options.get("iterations_to_1e-10") is not None
    of_states = "state_seq" in (options.get("gradient_loss") or "")

    @jax.jit
    def loss(params: dict, x: Array, h0: Array) -> tuple[Array, Any]:
        fed = _fed(options, params, x)
        impl = "associative" if converges else "sequential"
        found = newton_solve(cell, _own(options, params), fed, h0, solver=EXACT, axis=1, impl=impl)
        return jnp.sum(w * (_flat(found.states, order) if of_states else found.outputs)), found

    (_, found), gradients = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(params, x, h0)
    _, direct = jax.vjp(lambda h: _flat(h, order) if of_states else cell.output(h), found.states)
    arrays = _own(options, params), _fed(options, params, x), h0, found.states, direct(w)[0]
    iterates, residuals, jac, adjoints = jax.jit(partial(_around, cell, options))(*arrays)
    return {
        "y_seq": found.outputs,
        "state_seq": _flat(found.states, order),
        "guess": _flat(iterates[0], order),
        "newton": _flat(iterates[1:], order),
        "resnorm": residuals.max(-1),
        "jac": _flat_jacobian(jac, cell, order),
        "adjoint": _flat(adjoints, order),
        "grad_x": gradients[1],
        **{f"grad_{name}": _flat(gradients[2], order) for name in STATES},
        **{f"grad_{name}": gradient for name, gradient in gradients[0].items()},
    }


def _around(cell: Cell, options: dict, own: dict, x: Array, h0: Array, h: Array, direct: Array) -> tuple[Array, ...]:
    """(iterates from the guess on, their residuals, Jacobians and adjoint at the solution h); x is what the step reads."""
    if options.get("newton_jacobian") not in (None, "exact"):
        raise ValueError(f"pararnn: newton_jacobian={options['newton_jacobian']!r}: only exact ones are here")
    damped, zeros = Solver(damping=options.get("newton_damping") or 1.0), jnp.zeros_like(h)
    guess = zeros if options.get("initial_guess") == "zeros" else cell.step(own, x, zeros)
    found = newton_iterates(cell, own, x, h0, guess=guess, solver=damped, iterations=ITERATES, axis=1)
    system = System(own, x, h0, None, None)
    return *found, linearized(cell, own, x, entering(cell, system, h))[1], adjoint(cell, REDUCTION, system, h, direct)


def _cell(options: dict, params: dict) -> Cell:
    """The cell of the paper's layer, as the mixer makes it."""
    S, heads = options["state_dim"], 1
    name, functions = options["cell"], {"nonlinearity": options.get("candidate_nonlinearity") or "tanh"}
    if name == "lstm":
        functions["output_nonlinearity"] = options.get("output_nonlinearity") or "tanh"
    if name == "elman" and params["W"].ndim == 3:
        name, heads = "heads", params["W"].shape[0]
    return recipe(name, S, heads, **functions).cell


def _own(options: dict, params: dict) -> dict:
    """The parameters of the recurrence under the names of paperlab."""
    if options["cell"] == "elman":
        return {"w": params["W"]}
    return {"a": params["A"][_gates(options)]} | ({"p": params["C"]} if "C" in params else {})


def _fed(options: dict, params: dict, x: Array) -> Array:
    """What the step reads, [B, L, inputs, S]: U x + c, or B x + b with B block-diagonal over the heads."""
    if options["cell"] == "elman":
        return (x @ params["U"].T + params["c"])[..., None, :]
    parts = by_heads(x, params["B"])
    return (parts + params["b"])[..., _gates(options), :]


def by_heads(x: Array, B: Array) -> Array:
    """x [..., in] times B [heads, in / heads, gates, out / heads] -> [..., gates, out]."""
    split = x.reshape(*x.shape[:-1], *B.shape[:2])
    out = jnp.einsum("...hi,higj->...ghj", split, B)
    return out.reshape(*out.shape[:-2], -1)


def _gates(options: dict) -> Array:
    """Where each of our gates stands in the file's order."""
    ours = GATES[options["cell"]]
    return jnp.array([(options.get("gate_order") or ours).index(gate) for gate in ours])


def _state_order(options: dict) -> list[int]:
    """Where each variable of the file's flat state stands in ours."""
    ours = VARIABLES[options["cell"]]
    return [ours.index(variable) for variable in options.get("state_order") or ours]


def _flat(states: Array, order: list[int]) -> Array:
    """[..., K, n] -> [..., K n] in the file's order; states of one variable as they are."""
    if len(order) == 1:
        return states
    return states[..., jnp.array(order), :].reshape(*states.shape[:-2], -1)


def _unflat(states: Array, cell: Cell, order: list[int]) -> Array:
    states = states.reshape(*states.shape[:-1], *cell.state)
    return states if len(order) == 1 else states[..., jnp.array([order.index(i) for i in range(len(order))]), :]


def _flat_jacobian(J: Array, cell: Cell, order: list[int]) -> Array:
    """[..., K, K, n] -> [..., K n, K]: rows (variable, channel), columns variables."""
    if cell.structure != "blocks":
        return J
    J = J[..., jnp.array(order), :, :][..., jnp.array(order), :]
    return J.swapaxes(-1, -2).reshape(*J.shape[:-3], -1, len(order))
