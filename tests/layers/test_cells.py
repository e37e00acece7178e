"""Recurrent cells: equations, initialisation, declared structure; the reader's own file; what is refused, in one line."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paperlab.errors import ConfigError
from paperlab.layers.recurrent_cell import names, recipe, verify
from paperlab.recurrence import newton_solve
from paperlab.recurrence.jacobian import linearized

WIDTH, HEADS = 6, 2
LEAKY = """
import jax, jax.numpy as jnp
STRUCTURE, INPUTS = "diagonal", 2
def init(key, width):
    return {"a": 0.5 * jax.random.normal(key, (width,))}
def step(params, x, h):
    z = jax.nn.sigmoid(x[..., 0, :])
    return (1 - z) * h + z * jnp.sin(params["a"] * h + x[..., 1, :])
"""
draw = np.random.default_rng(0).standard_normal


def sigmoid(v):
    return 1 / (1 + np.exp(-v))


def written(folder: Path, text: str) -> str:
    file = folder / "leaky.py"
    file.write_text(text)
    return str(file)


def test_paragru_is_its_equations_and_jacobian():
    """Section 3 of the paper, with h before the step in (c - h)."""
    made = recipe("gru", WIDTH)
    (a_z, a_r, a_c), h, (x_z, x_r, x_c) = a, h, x = draw((3, WIDTH)), draw(WIDTH), draw((3, WIDTH))
    z, r = sigmoid(a_z * h + x_z), sigmoid(a_r * h + x_r)
    c = np.tanh(a_c * (h * r) + x_c)
    J = (1 - z) + (c - h) * z * (1 - z) * a_z + z * (1 - c * c) * a_c * (r + h * r * (1 - r) * a_r)
    with jax.enable_x64(True):
        after, found = linearized(made.cell, {"a": jnp.asarray(a)}, jnp.asarray(x), jnp.asarray(h))
        np.testing.assert_allclose(after, (1 - z) * h + z * c, rtol=1e-12)
        np.testing.assert_allclose(found, J, rtol=1e-10)


def test_paralstm_is_its_equations_and_jacobian():
    """The output gate's peephole is on the new c."""
    made = recipe("lstm", WIDTH)
    a, p, (c, h), x = draw((3, WIDTH)), draw((2, WIDTH)), draw((2, WIDTH)), draw((3, WIDTH))
    (a_f, a_o, a_c), (p_f, p_o), (x_f, x_o, x_c) = a, p, x
    f, t = sigmoid(a_f * h + x_f + p_f * c), np.tanh(a_c * h + x_c)
    new = f * c + (1 - f) * t
    o = sigmoid(a_o * h + x_o + p_o * new)
    cc = f + (c - t) * f * (1 - f) * p_f
    ch = (c - t) * f * (1 - f) * a_f + (1 - f) * (1 - t * t) * a_c
    u, s = np.tanh(new) * o * (1 - o), o * (1 - np.tanh(new) ** 2)
    J = [[cc, ch], [(u * p_o + s) * cc, u * (a_o + p_o * ch) + s * ch]]
    with jax.enable_x64(True):
        params = {"a": jnp.asarray(a), "p": jnp.asarray(p)}
        after, found = linearized(made.cell, params, jnp.asarray(x), jnp.stack([c, h]))
        np.testing.assert_allclose(after, [new, o * np.tanh(new)], rtol=1e-12)
        np.testing.assert_allclose(found, J, rtol=1e-10)
        np.testing.assert_array_equal(made.cell.output(after), after[1])


def test_the_others_are_their_equations():
    x, h = draw((2, WIDTH)), draw(WIDTH)
    f = sigmoid(x[0])
    np.testing.assert_allclose(recipe("linear", WIDTH).cell.step({}, x, h), f * h + (1 - f) * x[1], rtol=1e-5)
    w = draw((WIDTH, WIDTH))
    np.testing.assert_allclose(recipe("elman", WIDTH).cell.step({"w": w}, x[:1], h), np.tanh(w @ h + x[0]), rtol=1e-4)
    w, halves = draw((HEADS, 3, 3)), h.reshape(HEADS, 3)
    want = np.tanh(np.stack([w[i] @ halves[i] for i in range(HEADS)]) + x[0].reshape(HEADS, 3))
    found = recipe("heads", WIDTH, HEADS).cell
    np.testing.assert_allclose(found.step({"w": w}, x[:1], halves), want, rtol=1e-4)
    np.testing.assert_array_equal(found.output(halves), h)


@pytest.mark.parametrize("name", names())
def test_every_cell_of_the_house_is_what_it_declares(name):
    made = recipe(name, WIDTH, HEADS)
    verify(name, made)
    params = made.init(jax.random.key(0))
    assert made.zero_state(2).shape == (2, *made.cell.state)
    assert made is recipe(name, WIDTH, HEADS), "the same object, or every call compiles anew"
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, made.init(jax.random.key(1)))


def test_a_linear_cell_takes_one_iteration():
    made, x = recipe("linear", WIDTH), jnp.asarray(draw((1, 9, 2, WIDTH)))
    solution = newton_solve(made.cell, {}, x, axis=1, impl="associative")
    once = newton_solve(made.cell, {}, x, axis=1, impl="sequential")
    assert made.linear
    np.testing.assert_allclose(solution.outputs, once.outputs, atol=1e-6)


@pytest.mark.parametrize(("name", "fan_out"), [("gru", 64), ("lstm", 16)])
def test_initialisation_of_the_library(name, fan_out):
    made = recipe(name, 64, 4)
    params = made.init(jax.random.key(0))
    for leaf in params.values():
        assert jnp.std(leaf) == pytest.approx(2 / (5 * 64) ** 0.5, rel=0.15)
    np.testing.assert_allclose(made.bias(), [-np.linspace(0, 1, 64), np.zeros(64), np.zeros(64)], atol=1e-7)
    assert made.bound(8, 4) == pytest.approx((6 / (8 + fan_out)) ** 0.5)


def test_initialisation_of_the_paper():
    """Cut at 0.9 whatever the deviation, which is 1 / sqrt(d)."""
    wide, narrow = (recipe("lstm", width, style="paper").init(jax.random.key(0)) for width in (64, 1))
    assert jnp.std(wide["a"]) == pytest.approx(1 / 8, rel=0.15)
    many = jax.vmap(lambda key: recipe("lstm", 1, style="paper").init(key)["p"])(
        jax.random.split(jax.random.key(1), 500)
    )
    assert 0.85 < jnp.abs(many).max() <= 0.9
    assert narrow["p"].shape == (2, 1)
    made = recipe("gru", 64, style="paper")
    np.testing.assert_array_equal(made.bias(), jnp.zeros((3, 64)))
    assert made.bound(16, 4) == pytest.approx((3 / 16) ** 0.5)


def test_a_file_of_ones_own_is_a_cell(tmp_path):
    made = recipe(written(tmp_path, LEAKY), WIDTH)
    verify("leaky.py", made)
    params, x, h = made.init(jax.random.key(0)), draw((2, WIDTH)), draw(WIDTH)
    z = sigmoid(x[0])
    want = (1 - z) * h + z * np.sin(np.asarray(params["a"]) * h + x[1])
    np.testing.assert_allclose(made.cell.step(params, x, h), want, rtol=1e-5)
    assert made.own
    assert made.cell.structure == "diagonal"
    changed = recipe(written(tmp_path, LEAKY.replace("jnp.sin", "jnp.tanh")), WIDTH)
    assert not jnp.allclose(changed.cell.step(params, x, h), want), "a file that was rewritten is read again"


WRONG = {
    "cannot read it: No such file": None,
    "it has no init and no step": 'STRUCTURE, INPUTS = "diagonal", 1',
    "STRUCTURE='diag': did you mean 'diagonal'": LEAKY.replace('"diagonal"', '"diag"'),
    "INPUTS=0 must be a whole number": LEAKY.replace(", 2\n", ", 0\n"),
    "needs VARIABLES": LEAKY.replace('"diagonal"', '"blocks"'),
    "does not load: SyntaxError": LEAKY.replace("return {", "return {{"),
    "does not load: ModuleNotFoundError": "import nowhere",
    "init must return a dict": LEAKY.replace('{"a": 0.5', "(0.5").replace("(width,))}", "(width,)))"),
    "step raises KeyError: 'a'": LEAKY.replace('{"a"', '{"b"'),
    "step must return states": LEAKY + "\ndef step(params, x, h):\n    return h[..., :2]",
    r"output must return \[..., 6\]": LEAKY + "\ndef output(states):\n    return states[..., :1]",
    r"bias must return \[2, 6\]": LEAKY + "\ndef bias(width, style):\n    return jnp.zeros(width)",
}


@pytest.mark.parametrize("told", WRONG)
def test_a_file_that_is_no_cell_is_refused_in_one_line(tmp_path, told):
    text = WRONG[told]
    name = str(tmp_path / "missing.py") if text is None else written(tmp_path, text)
    with pytest.raises(ConfigError, match=f"config.mixers.pararnn.cell='.*py': .*{told}") as error:
        recipe(name, WIDTH)
    assert "\n" not in str(error.value)


def test_a_step_that_mixes_what_it_is_declared_not_to_mix_is_found(tmp_path):
    mixing = LEAKY.replace("(width,)", "(width, width)").replace('params["a"] * h', 'h @ params["a"]')
    name = written(tmp_path, mixing)
    with pytest.raises(ConfigError, match=r"structure='diagonal' is not true of cell.step: state\[\d\] depends on"):
        verify(name, recipe(name, WIDTH))
    verify(name, recipe(written(tmp_path, mixing.replace('"diagonal"', '"dense"')), WIDTH))
    wrong = LEAKY + "\ndef jacobian(params, x, h):\n    return 1 - jax.nn.sigmoid(x[..., 0, :])"
    with pytest.raises(ConfigError, match=r"cell.jacobian is not the derivative"):
        verify(name, recipe(written(tmp_path, wrong), WIDTH))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"name": "gruu"}, "did you mean 'gru'"),
        (
            {"name": "linear", "nonlinearity": "silu"},
            "nonlinearity='silu': the step of cell 'linear' takes no nonlinearity",
        ),
        ({"name": "gru", "output_nonlinearity": "silu"}, "takes no output_nonlinearity"),
        ({"name": "gru", "nonlinearity": "sine"}, "nonlinearity='sine': choose one of"),
        ({"name": "heads", "heads": 4}, "no multiple of config.model.heads=4"),
    ],
)
def test_options_that_a_cell_does_not_take_are_named(options, told):
    with pytest.raises(ConfigError, match=told):
        recipe(**{"width": WIDTH, **options})
