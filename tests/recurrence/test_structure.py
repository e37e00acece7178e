"""Each `impl` is what its name says, read off the program: how many steps depend on one another."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

from paperlab.recurrence import choice, linear_scan
from tests.recurrence.rows_linear import varying
from tests.recurrence.test_laws import EVERY, _names

T, CHUNK = 256, 16
AFFINE = [(impl, law) for impl, law in EVERY if law.name.split("/")[0] in ("linear", "complex", "block")]


def loops(jaxpr):
    """Lengths of every scan, 0 for a while loop, in a program and in all that it calls."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            yield equation.params["length"]
        elif equation.primitive.name == "while":
            yield 0
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from loops(inner)


def expected(impl):
    return {"sequential": {T}, "in_place": {T}, "associative": set(), "chunked": {T // CHUNK}}[impl]


@pytest.mark.parametrize(("impl", "law"), AFFINE, ids=_names(AFFINE))
def test_steps_in_time(impl, law):
    args = law.draw(T, 0, jnp.float32)
    assert set(loops(jax.make_jaxpr(partial(law.run, impl=impl))(args).jaxpr)) == expected(impl)


@pytest.mark.parametrize(("impl", "law"), AFFINE, ids=_names(AFFINE))
def test_steps_in_time_of_the_gradient(impl, law):
    """Backward is the same order of evaluation, once more."""
    args = law.draw(T, 0, jnp.float32)
    gradient = jax.grad(lambda args: sum(x.sum() for x in jax.tree.leaves(law.run(args, impl=impl))))
    found = list(loops(jax.make_jaxpr(gradient)(args).jaxpr))
    assert set(found) == expected(impl)
    assert len(found) == (0 if impl == "associative" else 2)


@pytest.mark.parametrize("impl", ["in_place", "associative", "chunked"])
def test_a_gradient_keeps_coefficients_and_states_only(impl):
    """What is saved for the backward pass: a, h and h0, not the levels of a tree."""
    args = varying(T, 0, jnp.float32)
    _, vjp = jax.vjp(lambda args: linear_scan(**args, impl=impl), args)
    kept = sum(x.size for x in jax.tree.leaves(vjp) if hasattr(x, "size"))
    assert kept <= 2.1 * args["b"].size + args["h0"].size


def test_second_derivatives():
    args = varying(9, 0, jnp.float32)

    def value(a, impl):
        return (linear_scan(a, args["b"], args["h0"], impl=impl, chunk=4)[0] ** 2).sum()

    direction = jnp.cos(jnp.arange(args["a"].size)).reshape(args["a"].shape)

    def curvature(impl):
        return jax.grad(lambda a: (jax.grad(value)(a, impl) * direction).sum())(args["a"])

    for impl in ("in_place", "associative", "chunked"):
        assert jnp.allclose(curvature(impl), curvature("sequential"), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("impl", ["in_place", "associative", "chunked"])
def test_second_derivatives_inside_a_loop(impl):
    args = varying(7, 0, jnp.float32)

    def looped(a, b, impl):
        return jax.lax.fori_loop(0, 3, lambda _, h: linear_scan(a * jnp.cos(h), b, impl=impl, chunk=4)[0], b).sum()

    def of_gradients(a, impl):
        return sum(jnp.sin(x).sum() for x in jax.grad(looped, (0, 1))(a, args["b"], impl))

    want = jax.grad(of_gradients)(args["a"], "sequential")
    assert jnp.allclose(jax.grad(of_gradients)(args["a"], impl), want, rtol=1e-3, atol=1e-3)


def test_the_sequential_form_has_forward_derivatives():
    args = varying(9, 0, jnp.float32)
    _, tangent = jax.jvp(lambda b: linear_scan(args["a"], b, impl="sequential")[0], (args["b"],), (args["b"],))
    assert jnp.allclose(tangent, linear_scan(args["a"], args["b"], impl="sequential")[0], atol=1e-6)


@pytest.mark.parametrize("ids", [None, jnp.array([[0, 0, 1, 1, 1, 2, 2, 2, 2]] * 2)])
def test_auto_may_mean_one_thing_for_values_and_another_with_gradients(monkeypatch, ids):
    monkeypatch.setattr(choice, "choose", lambda *_: "chunked" if _[-1] == "forward" else "in_place")
    args = varying(9, 0, jnp.float32)

    def value(args, impl):
        h, last = linear_scan(**args, segment_ids=ids, impl=impl, chunk=3)
        return (jnp.cos(h) * h).sum() + last.sum()

    assert set(loops(jax.make_jaxpr(partial(value, impl="auto"))(args).jaxpr)) == {3}
    assert set(loops(jax.make_jaxpr(jax.grad(partial(value, impl="auto")))(args).jaxpr)) == {9}
    got, want = (jax.grad(value)(args, impl) for impl in ("auto", "sequential"))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert jnp.allclose(a, b, atol=1e-5)


def test_what_is_asked_wrongly_is_named():
    args = varying(4, 0, jnp.float32)
    a, b, h0 = args["a"], args["b"], args["h0"]
    for call, words in [
        (partial(linear_scan, a, b, impl="fast"), "'fast'"),
        (partial(linear_scan, a[:, :3], b), "broadcast"),
        (partial(linear_scan, a, b[:, :0]), "does not broadcast|empty"),
        (partial(linear_scan, a, b, h0[:1]), "h0"),
        (partial(linear_scan, a, b, axis=3), "axis=3"),
        (partial(linear_scan, a, b, chunk=0, impl="chunked"), "chunk=0"),
        (partial(linear_scan, a, b.astype(jnp.int32)), "real floating"),
        (partial(linear_scan, a, b, segment_ids=jnp.zeros((2, 5), int)), "segment_ids"),
        (partial(linear_scan, a, b, impl="pallas"), "no kernel"),
    ]:
        with pytest.raises(ValueError, match=words):
            call()


def test_any_axis_holds_the_time():
    args = varying(7, 0, jnp.float32)
    want, last = linear_scan(**args)
    for axis in (0, 1, 2):
        a, b = (jnp.moveaxis(args[name], 1, axis) for name in "ab")
        for impl in ("in_place", "chunked"):
            got, end = linear_scan(a, b, args["h0"], axis=axis, impl=impl, chunk=2)
            assert jnp.allclose(jnp.moveaxis(got, axis, 1), want, atol=1e-6)
            assert jnp.allclose(end, last, atol=1e-6)


def test_the_measured_table_names_what_there_is():
    rows = choice.table()["cpu"]
    assert {row["op"] for row in rows} == {"linear", "complex", "block/blocks"}
    assert {row["impl"] for row in rows} <= {"sequential", "in_place", "associative", "chunked"}
    for row in rows:
        assert choice.choose(row["op"], row["T"], row["width"], row["pass"]) == row["impl"]
