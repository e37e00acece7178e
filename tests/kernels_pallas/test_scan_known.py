"""The adapter of the bare scans' known answers, in layouts and with options that no shipped file has, against plain loops."""

import jax
import numpy as np
import pytest

from tests.golden.adapters._kernels import run

SIZES = {"B": 2, "T": 6, "H": 3, "D": 4, "N": 5, "i": 2, "j": 2}
GENERATOR = np.random.default_rng(0)


def array(letters, complex_numbers=False):
    shape = [SIZES[letter] for letter in letters]
    x = GENERATOR.uniform(-0.8, 0.8, shape)
    return x + 1j * GENERATOR.uniform(-0.8, 0.8, shape) if complex_numbers else x


def loop(layout, apply, a, b, h0, exclusive):
    """Outputs and the last state, one step after the other; `apply` takes the coefficient of a step."""
    time = layout.replace("j", "").index("T")
    h, out = h0, []
    for t in range(SIZES["T"]):
        before = h
        h = apply(a.take(t, layout.index("T")) if a.ndim == len(layout) else a, h) + b.take(t, time)
        out.append(before if exclusive else h)
    return np.stack(out, time), h


@pytest.mark.parametrize("layout", ["BTD", "BDT", "TD", "BHTD"])
@pytest.mark.parametrize("complex_numbers", [False, True])
@pytest.mark.parametrize("exclusive", [False, True])
def test_numbers(layout, complex_numbers, exclusive):
    a, b, h0 = (array(letters, complex_numbers) for letters in (layout, layout, layout.replace("T", "")))
    out, last = loop(layout, np.multiply, a, b, h0, exclusive)
    kind, names = ("complex_diag_scan", "lam b x0") if complex_numbers else ("elementwise_scan", "gate x h0")
    options = {"layout": layout, "inclusive": not exclusive, "gate_is_log": False}
    with jax.enable_x64(True):
        got = run(kind, options, dict(zip(names.split(), (a, b, h0), strict=True)), {})
        again = run(kind, options | {"has_initial_state": False}, dict(zip(names.split()[:2], (a, b), strict=True)), {})
    np.testing.assert_allclose(got["o"], out, atol=1e-12)
    np.testing.assert_allclose(got["last"], last, atol=1e-12)
    without = loop(layout, np.multiply, a, b, 0 * h0, exclusive)[0]
    np.testing.assert_allclose(again["h"], without, atol=1e-12)


@pytest.mark.parametrize(("layout", "lam"), [("TN", "N"), ("BTN", "N"), ("BTN", "BN"), ("NTB", "N"), ("BNT", "N")])
def test_what_is_the_same_at_every_step(layout, lam):
    a, b, h0 = array(lam, True), array(layout, True), array(layout.replace("T", ""), True)
    rest = layout.replace("T", "")
    wide = a.reshape([SIZES[letter] if letter in lam else 1 for letter in rest])
    out, _ = loop(layout, lambda _, h: wide * h, np.zeros(()), b, h0, False)
    with jax.enable_x64(True):
        options = {"layout": layout, "time_invariant": True}
        got = run("complex_diag_scan", options, {"lam": a, "b": b, "x0": h0, "cotangent": np.ones_like(b)}, {})
    np.testing.assert_allclose(got["x"], out, atol=1e-12)
    assert got["dlam"].shape == a.shape


@pytest.mark.parametrize(("layout", "fixed"), [("TNij", False), ("BTNij", False), ("BTijN", False), ("TNij", True)])
@pytest.mark.parametrize("exclusive", [False, True])
def test_blocks(layout, fixed, exclusive):
    vector = layout.replace("j", "")
    state = vector.replace("T", "")
    a = array(layout.replace("T", "") if fixed else layout)
    rule = f"{layout.replace('T', '')},{state.replace('i', 'j')}->{state}"
    b, h0, g = array(vector), array(state), array(vector)

    def outputs(a, b, h0):
        return loop(layout, lambda a, h: np.einsum(rule, a, h), a, b, h0, exclusive)[0]

    with jax.enable_x64(True):
        options = {"layout": layout, "time_invariant": fixed, "inclusive": not exclusive}
        got = run("block2x2_scan", options, {"J": a, "b": b, "h0": h0, "cotangent": g}, {})
        got = {name: np.asarray(x) for name, x in got.items()}
    np.testing.assert_allclose(got["h"], outputs(a, b, h0), atol=1e-12)
    for name, place in (("dJ", 0), ("db", 1), ("dh0", 2)):
        step = [np.zeros_like(x) for x in (a, b, h0)]
        step[place] = 1e-6 * GENERATOR.standard_normal(step[place].shape)
        up, down = (outputs(*(x + s * d for x, d in zip((a, b, h0), step, strict=True))) for s in (1, -1))
        np.testing.assert_allclose((got[name] * step[place]).sum(), (g * (up - down) / 2).sum(), rtol=1e-5, atol=1e-13)


def test_unknown_kinds_are_errors():
    with pytest.raises(ValueError, match="unknown kind 'scan'"):
        run("scan", {}, {}, {})
