"""Every kernel, lowered for its platforms and compiled by their real compilers: no spilled register, no refused block shape."""

import os
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from kernels_pallas import targets
from kernels_pallas.registry import operations

KEY = jax.random.key(0)
OPERATIONS = operations()


def rows(everywhere: bool) -> list:
    """(operation, case, target, pass); the first case of each for every target, the others for one of each kind."""
    found = []
    for op in OPERATIONS:
        for number, case in enumerate(op.cases):
            for target in targets.TARGETS if everywhere else ("tpu", "hopper"):
                if everywhere and number and target in ("v6e", "v5p"):
                    continue
                for which in ("forward", "both"):
                    name = "-".join(str(v) for v in case.values())
                    found.append(pytest.param(op, case, target, which, id=f"{op.name}-{name}-{target}-{which}"))
    return found


def program(op, case, target, which):
    """(function, shapes) of one case, forward or with every gradient, by the kernel of the target."""
    shapes = jax.eval_shape(partial(op.example, case), KEY)
    present = [x for x in shapes if x is not None]

    def run(*arrays):
        given = iter(arrays)
        return op.run(*(None if x is None else next(given) for x in shapes), impl="pallas")

    if which == "forward":
        return run, present
    floating = [i for i, x in enumerate(present) if jnp.issubdtype(x.dtype, jnp.floating)]

    def loss(*arrays):
        return sum(x.astype(jnp.float32).sum() for x in jax.tree.leaves(run(*arrays)))

    return jax.grad(loss, argnums=tuple(floating)), present


def takes(op, case, target):
    shapes = jax.eval_shape(partial(op.example, case), KEY)
    return op.supports("hopper" if target in ("hopper", "sm_90a") else "tpu", *shapes)


@pytest.mark.parametrize(("op", "case", "target", "which"), rows(everywhere=False))
def test_kernels_lower(op, case, target, which):
    support = takes(op, case, target)
    if not support:
        assert support.reason
        return
    f, shapes = program(op, case, target, which)
    text = targets.lower_for(target, f, *shapes).as_text()
    assert ("tpu_custom_call" if target == "tpu" else "mosaic_gpu") in text


@pytest.mark.compilers
@pytest.mark.parametrize(("op", "case", "target", "which"), rows(everywhere=True))
def test_kernels_compile(op, case, target, which):
    if targets.missing() and not os.environ.get("CI"):
        pytest.skip(targets.missing())
    support = takes(op, case, target)
    if not support:
        assert support.reason
        return
    f, shapes = program(op, case, target, which)
    compiled = targets.compile_for(target, f, *shapes)
    assert compiled.calls >= 1
    if target == "sm_90a":
        assert compiled.kernels
        assert [kernel for kernel in compiled.kernels if kernel.spilled] == []


@pytest.mark.parametrize("op", OPERATIONS, ids=lambda op: op.name)
def test_every_operation_has_a_kernel_for_each_platform(op):
    for target in ("tpu", "hopper"):
        assert any(takes(op, case, target) for case in op.cases), (
            f"{op.name} takes no case of its benchmark on {target}"
        )


@pytest.mark.compilers
def test_what_cannot_be_compiled_is_an_error():
    if targets.missing() and not os.environ.get("CI"):
        pytest.skip(targets.missing())
    with pytest.raises(ValueError, match="choose one of v5e"):
        targets.compile_for("v9z", jnp.sin, jax.ShapeDtypeStruct((8,), jnp.float32))
