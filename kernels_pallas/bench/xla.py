"""What runs in this process: the operation's own implementations, other ways to write it in JAX, kernels of other packages.

A contender takes its own layout of the arguments. What turns the operation's arguments into it (`prepare`) and its results back
(`back`) is not timed.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kernels_pallas import newton, platforms
from kernels_pallas.bench import device
from kernels_pallas.bench.subject import Arrays, Subject, split
from kernels_pallas.bench.torch_process import RefusedError, module


class Contender(NamedTuple):
    """One way to compute an operation.

    call: call(*inputs) -> tree of arrays. prepare: prepare(*arguments) -> inputs. back: back(tree) -> the operation's results in
    their order, None for those it does not give. same: False for another function of the same sizes, which is not checked.
    gradients: whether it has some.
    """

    label: str
    call: Callable[..., Any]
    prepare: Callable[..., Arrays] = lambda *arrays: arrays
    back: Callable[[Any], list[Any]] = jax.tree.leaves
    same: bool = True
    gradients: bool = True


class Program(NamedTuple):
    """A compiled contender: forward(inputs) and both(inputs, cotangents), where asked for."""

    contender: Contender
    forward: Any
    both: Any


def compiled(contender: Contender, arrays: Arrays, which: str) -> Program:
    """Compiles it for these arguments; `which` is "forward" or "both" (with gradients of every floating input)."""
    if which == "both" and not contender.gradients:
        raise RefusedError("has no gradients")
    inputs = contender.prepare(*arrays)
    forward = fitting(jax.jit(lambda *inputs: contender.call(*inputs)).lower(*inputs).compile())
    if which == "forward":
        return Program(contender, forward, None)
    shapes = jax.eval_shape(lambda *inputs: contender.call(*inputs), *inputs)
    cotangents = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), shapes)

    def both(inputs: Arrays, cotangents: Any) -> Any:
        chosen, merge = split(inputs)
        out, back = jax.vjp(lambda floating: contender.call(*merge(floating)), chosen)
        return out, back(cotangents)[0]

    return Program(contender, forward, fitting(jax.jit(both).lower(inputs, cotangents).compile()))


def fitting(program: Any) -> Any:
    """The compiled program; refuses one that needs more memory than there is."""
    told = program.memory_analysis()
    needed = told.temp_size_in_bytes + told.output_size_in_bytes + told.argument_size_in_bytes if told else 0
    if needed > device.memory():
        raise RefusedError(f"needs {needed / 1e9:.0f} GB, here are {device.memory() / 1e9:.0f} GB")
    return program


def evaluate(program: Program, subject: Subject, *, gradients: bool) -> tuple[list[Any], list[Any]]:
    """(results, gradients) in the operation's layout for the first set and the cotangents of the checked part."""
    contender, arrays = program.contender, subject.arrays
    inputs = contender.prepare(*arrays)
    if not gradients:
        return contender.back(program.forward(*inputs)), []
    out = program.forward(*inputs)
    ours, turn = jax.vjp(contender.back, out)
    weights = [
        None if x is None else w.astype(x.dtype) for x, w in zip(ours, subject.cotangents(part=True), strict=True)
    ]
    out, found = program.both(inputs, turn(weights)[0])
    chosen, merge = split(arrays)
    _, turn = jax.vjp(lambda floating: split(contender.prepare(*merge(floating)))[0], chosen)
    return contender.back(out), turn(found)[0]


def calls(program: Program, subject: Subject, which: str) -> Callable[[int], Any]:
    """The call that is timed: round the input sets."""
    inputs = [program.contender.prepare(*arrays) for arrays in subject.sets]
    if which == "forward":
        return lambda turn: program.forward(*inputs[turn % len(inputs)])
    out = jax.eval_shape(lambda *inputs: program.contender.call(*inputs), *inputs[0])
    leaves, tree = jax.tree.flatten(out)
    keys = jax.random.split(jax.random.key(subject.seed + 2), len(leaves))
    drawn = [jax.random.normal(k, x.shape).astype(x.dtype) for k, x in zip(keys, leaves, strict=True)]
    cotangents = jax.tree.unflatten(tree, drawn)
    return lambda turn: program.both(inputs[turn % len(inputs)], cotangents)


def own(subject: Subject) -> list[Contender]:
    """The operation's own implementations, the kernel first where this device has one; reasons are raised when called."""
    op = subject.op
    plain = [implementation(op, "chunked", "chunked"), implementation(op, "reference", "lax.scan")]
    if platforms.platform() not in platforms.PLATFORMS:
        return plain
    return [implementation(op, "pallas", "kernel"), *plain, *KERNELS.get(op.name, [])]


def implementation(op: Any, impl: str, label: str) -> Contender:
    """One of the operation's own implementations."""
    return Contender(label, lambda *arrays: op.run(*arrays, impl=impl))


def others(op: str, *, foreign: bool) -> list[Contender]:
    """Other ways to compute the operation; with `foreign` those of other packages too."""
    return [*PLAIN.get(op, []), *(FOREIGN.get(op, []) if foreign else [])]


def _first_order(left: Any, right: Any) -> Any:
    (a, x), (b, y) = left, right
    return a * b, b * x + y


def _linear(a: Any, b: Any, h0: Any = None) -> Any:
    a, x = jnp.broadcast_to(_over_time(a, 3), b.shape).astype(_wide(b)), b.astype(_wide(b))
    if h0 is not None:
        x = x.at[:, 0].add(a[:, 0] * h0)
    h = jax.lax.associative_scan(_first_order, (a, x), axis=1)[1]
    return h.astype(b.dtype), h[:, -1]


def _complex_planes(a_re: Any, a_im: Any, b_re: Any, b_im: Any, h0_re: Any = None, h0_im: Any = None) -> Arrays:
    pairs = ((a_re, a_im), (b_re, b_im), (h0_re, h0_im))
    return tuple(
        None if re is None else jax.lax.complex(*(x.astype(jnp.float32) for x in (re, im))) for re, im in pairs
    )


def _real_planes(out: Any) -> list[Any]:
    h, last = out
    return [h.real, h.imag, last.real, last.imag]


def _block2(a: Any, b: Any, h0: Any = None) -> Any:
    B, T, _, D = b.shape
    a, x = jnp.broadcast_to(_over_time(a, 5), (B, T, 2, 2, D)).astype(_wide(b)), b.astype(_wide(b))
    if h0 is not None:
        x = x.at[:, 0].add(jnp.einsum("brcd,bcd->brd", a[:, 0], h0))

    def combine(left: Any, right: Any) -> Any:
        (a, x), (b, y) = left, right
        return jnp.einsum("...ijd,...jkd->...ikd", b, a), jnp.einsum("...ijd,...jd->...id", b, x) + y

    h = jax.lax.associative_scan(combine, (a, x), axis=1)[1]
    return h.astype(b.dtype), h[:, -1]


def _over_time(a: Any, rank: int) -> Any:
    """A coefficient that is the same at every step, of all sequences or one of each, with an axis of time."""
    return jnp.expand_dims(a, 1) if a.ndim == rank - 1 else a


def _wide(x: Any) -> Any:
    """At least float32; complex numbers stay."""
    return jnp.promote_types(x.dtype, jnp.float32)


def _jla(impl: str) -> Contender:
    def call(q: Any, k: Any, v: Any, log_alpha: Any, state: Any = None, segments: Any = None) -> Any:
        if log_alpha is None:
            raise RefusedError("takes a gate only")
        attention, simple = module("jla.ops").linear_attention, log_alpha.shape[-1] == 1
        options = {"scale": q.shape[-1] ** -0.5, "initial_state": state, "output_final_state": True}
        if segments is not None:
            options["segment_ids"] = segments
        gate = log_alpha[..., 0] if simple else log_alpha
        return attention("simple_gla" if simple else "gla", q, k, v, g=gate, impl=impl, **options)

    return Contender(f"jla {impl}", call)


def _softmax(q: Any, k: Any, v: Any, *rest: Any) -> Any:
    if platforms.platform() not in ("hopper", "gpu"):
        raise RefusedError("cuDNN runs on NVIDIA GPUs only")
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")


def _sequential(name: str) -> Contender:
    """The cell of a Newton solver step by step in one kernel, forward only."""

    def call(*arrays: Any) -> Any:
        return getattr(newton, name)(*arrays)

    return Contender("kernel step by step", call, back=lambda out: [*jax.tree.leaves(out), None], gradients=False)


KERNELS = {
    "newton_gru": [_sequential("fused_sequential_gru")],
    "newton_lstm": [_sequential("fused_sequential_lstm")],
}
PLAIN = {
    "linear_scan": [Contender("lax.associative_scan", _linear)],
    "complex_scan": [Contender("lax.associative_scan", _linear, _complex_planes, _real_planes)],
    "block2_scan": [Contender("lax.associative_scan", _block2)],
}
FOREIGN = {
    "gla": [
        _jla("mosaic_gpu"),
        _jla("chunked"),
        Contender("cuDNN softmax attention (another function)", _softmax, lambda *x: x[:3], same=False),
    ],
}
