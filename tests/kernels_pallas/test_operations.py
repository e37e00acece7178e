"""Laws of every operation: each implementation against the definition, values and gradients."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas.registry import operation, operations

OPERATIONS = operations()
QUICK = {"xla_backend_optimization_level": 0}  # compiling is what these tests spend their time on
TOLERANCE = {"float32": 1e-4, "bfloat16": 4e-2}


def rows():
    for op in OPERATIONS:
        for case in op.small:
            for impl in ("chunked", "interpret"):
                yield pytest.param(op, case, impl, id=f"{op.name}-{'-'.join(str(v) for v in case.values())}-{impl}")


@cache
def arguments(name, items):
    return operation(name).example(dict(items), jax.random.key(1))


def evaluated(op, arrays, impl):
    """(outputs, gradients) of a weighted sum of all outputs; weights are drawn, so that no error cancels."""
    floating = [i for i, x in enumerate(arrays) if x is not None and jnp.issubdtype(x.dtype, jnp.floating)]

    def loss(*chosen):
        full = list(arrays)
        for i, x in zip(floating, chosen, strict=True):
            full[i] = x
        out = op.run(*full, impl=impl)
        leaves = jax.tree.leaves(out)
        keys = jax.random.split(jax.random.key(2), len(leaves))
        pairs = zip(leaves, keys, strict=True)
        return sum((x.astype(jnp.float32) * jax.random.normal(k, x.shape)).sum() for x, k in pairs), out

    chosen = tuple(arrays[i] for i in floating)
    both = jax.value_and_grad(loss, argnums=tuple(range(len(floating))), has_aux=True)
    (_, out), gradients = jax.jit(both, compiler_options=QUICK)(*chosen)
    return out, gradients


def assert_close(got, wanted, tolerance):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        a, b = (np.asarray(x, np.float64) for x in (a, b))
        np.testing.assert_allclose(a, b, atol=tolerance * max(1.0, np.abs(b).max()), rtol=0, equal_nan=False)


@pytest.mark.parametrize(("op", "case", "impl"), list(rows()))
def test_implementations_agree_with_the_reference(op, case, impl):
    arrays = arguments(op.name, tuple(case.items()))
    support = op.supports("tpu", *arrays)
    if impl == "interpret" and not support:
        assert support.reason
        with pytest.raises(ValueError, match="impl='interpret'"):
            op.run(*arrays, impl=impl)
        return
    tolerance = TOLERANCE[case.get("dtype", "float32")]
    assert_close(evaluated(op, arrays, impl), evaluated(op, arrays, "reference"), tolerance)


@pytest.mark.parametrize("op", OPERATIONS, ids=lambda op: op.name)
def test_a_kernel_that_is_not_there_is_said(op):
    arrays = arguments(op.name, tuple(op.small[0].items()))
    with pytest.raises(ValueError, match="there is no kernel for 'cpu'"):
        op.run(*arrays, impl="pallas")
    with pytest.raises(ValueError, match="choose one of"):
        op.run(*arrays, impl="fastest")


@pytest.mark.parametrize("op", OPERATIONS, ids=lambda op: op.name)
def test_floors_and_configurations_are_told(op):
    for case in op.cases:
        forward, both = (op.floor(case, which) for which in ("forward", "both"))
        assert 0 < forward.bytes < both.bytes
        assert 0 < forward.steps <= both.steps
        for platform in ("tpu", "hopper"):
            configs = op.configs(case, platform)
            assert len(set(configs)) == len(configs) > 0
