"""Known answers of the bare scans through kernels_pallas.

    elementwise_scan   h_t = a_t h_{t-1} + x_t, a given or its logarithm      linear_scan
    complex_diag_scan  the same on complex numbers                            complex_scan
    block2x2_scan      the same with a 2 x 2 matrix                           block2_scan

`layout` names the axes of the coefficient of a step (block2x2: with i, j for row and column); T is time, and what has no T is the
same at every step. Exclusive (`inclusive` false): the output at t is the state before the step. Gradients are those of
sum(outputs * cotangent) + sum(last * its cotangent), where the case has them.
"""

import jax
import jax.numpy as jnp
from jax import Array

from kernels_pallas import block2_scan, complex_scan, linear_scan

INPUTS = ("x", "b", "u")
STATES = ("h0", "x0", "s0", "initial_state")
COTANGENTS = ("do", "cotangent", "dh", "dy")
LAST_COTANGENTS = ("dhT", "dht", "dxT", "cotangent_last")
OUTPUTS = ("o", "h", "x", "y", "states")
LASTS = ("hT", "ht", "xT", "last", "final_state")
KINDS = ("elementwise_scan", "complex_diag_scan", "block2x2_scan")


def run(kind: str, options: dict, inputs: dict, params: dict, impl: str = "auto") -> dict:
    """Every array that a case of a bare scan may ask for, in the layout of its arrays."""
    if kind not in KINDS:
        raise ValueError(f"_kernels: unknown kind {kind!r}")
    arrays = {name: jnp.asarray(a) for name, a in (inputs | params).items()}
    if options.get("has_initial_state") is False:
        arrays = {name: a for name, a in arrays.items() if name not in STATES}
    cotangents = {name: arrays.pop(name) for name in (*COTANGENTS, *LAST_COTANGENTS) if name in arrays}
    # Numbers and their gradients travel as planes, so that the gradient of a complex one is dL/dRe + i dL/dIm.
    planes = {name: _planes(a) for name, a in arrays.items()}

    def outputs(planes: dict) -> tuple[tuple, tuple]:
        states, last = _scan(kind, options, {name: _number(p) for name, p in planes.items()}, impl)
        return _planes(states), _planes(last)

    (states, last), vjp = jax.vjp(jax.jit(outputs), planes)
    found = dict.fromkeys(OUTPUTS, _number(states)) | dict.fromkeys(LASTS, _number(last))
    if cotangents:
        given = (_cotangent(cotangents, COTANGENTS, states), _cotangent(cotangents, LAST_COTANGENTS, last))
        (gradients,) = vjp(given)
        turn = jnp.conj if "- i" in options.get("complex_gradient_convention", "").replace("-i", "- i") else jnp.asarray
        found |= {f"d{name}": turn(_number(p)) for name, p in gradients.items()}
    return found


def _scan(kind: str, options: dict, arrays: dict, impl: str) -> tuple[Array, Array]:
    """(outputs, last state) in the layout of the inputs."""
    x = next(arrays[name] for name in INPUTS if name in arrays)
    h0 = next((arrays[name] for name in STATES if name in arrays), None)
    (a,) = (array for name, array in arrays.items() if name not in (*INPUTS, *STATES))
    if options.get("gate_is_log"):
        a = jnp.exp(a)
    square = kind == "block2x2_scan"
    layout = options.get("layout") or ("TNij" if square else "BTD")
    steps = layout.replace("j", "")
    order = ["T", *sorted(set(steps) - {"T", "i"}, key=steps.index)]
    inner = ["i"] if square else []
    rest = [x.shape[steps.index(axis)] for axis in order[1:]]

    b = _axes(x, steps, [order[0], *inner, *order[1:]])
    b = b.reshape(1, *b.shape[: 1 + len(inner)], -1)
    state = None
    if h0 is not None:
        state = _axes(h0, steps.replace("T", ""), [*inner, *order[1:]]).reshape(1, *b.shape[2:])
    a = _coefficient(a, layout, order, rest, ["i", "j"] if square else [])
    h, last = _kernel(kind, a, b, state, impl)
    if options.get("inclusive") is False:
        before = jnp.zeros_like(last) if state is None else state
        h = jnp.concatenate([before[:, None].astype(h.dtype), h[:, :-1]], axis=1)
    h = h.reshape(*b.shape[1 : 2 + len(inner)], *rest)
    last = last.reshape(*b.shape[2 : 2 + len(inner)], *rest).astype(x.dtype)
    return _axes(h, ["T", *inner, *order[1:]], steps), _axes(last, [*inner, *order[1:]], steps.replace("T", ""))


def _coefficient(a: Array, layout: str, order: list[str], rest: list[int], square: list[str]) -> Array:
    """[1, T, (2, 2,) D], or without time [1, (2, 2,) D]; axes that it lacks are broadcast."""
    present = list(layout)
    for missing in ("T", "B"):
        if len(present) > a.ndim and missing in present:
            present.remove(missing)
    time = ["T"] if "T" in present else []
    a = _axes(a, present, [*time, *square, *(axis for axis in order[1:] if axis in present)])
    for place, axis in enumerate(order[1:], len(time) + len(square)):
        if axis not in present:
            a = jnp.expand_dims(a, place)
    a = jnp.broadcast_to(a, (*a.shape[: len(time) + len(square)], *rest))
    return a.reshape(1, *a.shape[: len(time) + len(square)], -1)


def _kernel(kind: str, a: Array, b: Array, h0: Array | None, impl: str) -> tuple[Array, Array]:
    if kind == "elementwise_scan":
        return linear_scan(a, b, h0, impl=impl)
    if kind == "block2x2_scan":
        return block2_scan(a, b, h0, impl=impl)
    state = () if h0 is None else (h0.real, h0.imag)
    (re, im), (last_re, last_im) = complex_scan(a.real, a.imag, b.real, b.imag, *state, impl=impl)
    return re + 1j * im, last_re + 1j * last_im


def _axes(x: Array, have, want) -> Array:
    return x.transpose([list(have).index(axis) for axis in want])


def _planes(a: Array) -> tuple[Array, ...]:
    return (a.real, a.imag) if jnp.iscomplexobj(a) else (a,)


def _number(planes: tuple[Array, ...]) -> Array:
    return planes[0] if len(planes) == 1 else planes[0] + 1j * planes[1]


def _cotangent(cotangents: dict, names: tuple[str, ...], like: tuple[Array, ...]) -> tuple[Array, ...]:
    found = next((cotangents[name] for name in names if name in cotangents), None)
    planes = (jnp.zeros_like(p) for p in like) if found is None else _planes(found)
    return tuple(p.astype(q.dtype) for p, q in zip(planes, like, strict=False))
