"""What is read out of a solver and of a trained model is what was computed, and every picture of it is titled and labelled."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest

from paperlab.config import load_experiment, resolve
from paperlab.discovery import find
from paperlab.layers.recurrent_cell import recipe
from paperlab.papers.pararnn import anatomy, pictures
from paperlab.recurrence import Solver

WIDTH, T = 6, 12


def sequence(name="gru", heads=1):
    made = recipe(name, WIDTH, heads)
    return made, made.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (T, made.inputs, WIDTH))


@pytest.mark.parametrize(("name", "method"), [("gru", "newton"), ("lstm", "newton"), ("elman", "quasi")])
def test_a_course_goes_from_the_guess_to_the_exact_states(name, method):
    with jax.enable_x64(True):
        made, params, x = sequence(name)
        found = anatomy.course(made.cell, params, x, T, Solver(method))
        guess = made.cell.step(params, x, jnp.zeros((T, *made.cell.state)))
        np.testing.assert_allclose(found.states[0], guess, rtol=0, atol=1e-6)
        np.testing.assert_allclose(found.states[-1], found.exact, rtol=0, atol=1e-6)
        assert found.residuals.shape == (T + 1, T)
        first = np.abs(np.asarray(made.cell.step(params, x[1], found.states[0, 0]) - found.states[0, 1])).max()
        np.testing.assert_allclose(found.residuals[0, 1], first, rtol=1e-6)
        assert found.residuals[0].max() > 1e-2 > 1e-5 > found.residuals[-1].max()
        for k in range(T):
            assert found.residuals[k, : k + 1].max() < 1e-6


@pytest.mark.parametrize(("name", "pattern"), [("gru", np.eye(6)), ("lstm", np.tile(np.eye(6), (2, 2)))])
def test_the_structure_is_what_is_declared(name, pattern):
    np.testing.assert_array_equal(anatomy.structure(recipe(name, 6)) > 0, pattern > 0)


def test_heads_mix_inside_themselves_alone():
    np.testing.assert_array_equal(anatomy.structure(recipe("heads", 6, 2)) > 0, np.kron(np.eye(2), np.ones((3, 3))) > 0)
    assert np.all(anatomy.structure(recipe("elman", 6)) > 0)


def small(variant):
    config = load_experiment(f"experiments/pararnn.py:{variant}")
    config.model.width = 8
    if "depth" in config.model:
        config.model.update(depth=2, heads=2)
    config.data.update(sequence_length=10, batch_size=2)
    return resolve(config)


@pytest.mark.parametrize(("variant", "layers"), [("", 2), ("parity", 1)])
def test_more_iterations_leave_less_in_every_layer(variant, layers):
    config = small(variant)
    model = find("models", config.model.name).make(config, 7)
    tokens = jax.random.randint(jax.random.key(0), (2, 10), 0, 7)
    left = anatomy.layer_residuals(config, model.init(jax.random.key(1), tokens), tokens, (1, 10))
    assert left.shape == (2, layers)
    assert np.all(left[1] < 1e-5)
    assert np.all(left[0] > left[1])


def test_a_model_without_such_layers_is_refused():
    config = small("attention")
    model = find("models", config.model.name).make(config, 7)
    tokens = jnp.zeros((1, 4), jnp.int32)
    with pytest.raises(ValueError, match="no pararnn layer"):
        anatomy.layer_residuals(config, model.init(jax.random.key(1), tokens), tokens, (1,))


def test_steps_in_time_grow_with_the_logarithm():
    assert [anatomy.dependent_steps(T) for T in (64, 128, 256)] == [34, 40, 46]


DRAWN = {
    "structures": lambda: pictures.structures({"gru": np.eye(4), "elman": np.ones((4, 4))}),
    "iterates": lambda: pictures.iterates(np.random.default_rng(0).normal(size=(3, 9)), np.zeros(9)),
    "residual_maps": lambda: pictures.residual_maps({"a": np.full((4, 9), 1e-3), "b": np.full((9, 9), np.nan)}),
    "convergence": lambda: pictures.convergence({"newton": [1, 1e-3, 0], "picard": [1, np.inf, np.nan]}),
    "bounds": lambda: pictures.bounds(
        (0.5, 2, 8), [[1e-6, 1e-7], [1, 2], [1e3, 1e4]], [[4, 4], [8, None], [None, None]]
    ),
    "learning": lambda: pictures.learning({"a": ([0, 1], [0, 1])}, ylabel="accuracy", title="parity", chance=0.5),
    "counting": lambda: pictures.counting(np.zeros((8, 3)), [0, 1] * 4),
    "steps_in_time": lambda: pictures.steps_in_time((8, 16), (8, 16), {"3 iterations": (7, 9)}),
}


@pytest.mark.parametrize("name", DRAWN)
def test_every_picture_is_titled_and_labelled(name):
    figure = DRAWN[name]()
    try:
        figure.canvas.draw()
        assert figure.get_suptitle()
        assert sum(bool(axes.get_xlabel()) for axes in figure.axes) >= 1
        assert sum(bool(axes.get_ylabel()) for axes in figure.axes) >= 1
    finally:
        plt.close(figure)


def test_every_picture_is_drawn_by_the_table_above():
    own = {name for name, thing in vars(pictures).items() if getattr(thing, "__module__", "") == pictures.__name__}
    assert {name for name in own if not name.startswith("_")} == set(DRAWN)


def test_what_was_not_solved_is_said():
    figure = DRAWN["bounds"]()
    assert [text.get_text() for text in figure.axes[1].texts] == ["not solved"] * 2
    plt.close(figure)
