"""Schedules for any length of run, and rules on parameter paths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paperlab.errors import ConfigError
from paperlab.training.optimizer import DIRECTIONS, make_optimizer, make_schedule, merge, project, select
from tests.training.tiny_task import tiny_config

SCHEDULES = ["cosine", "linear", "constant", "rsqrt"]
PARAMS = {"block": {"q": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}, "norm": {"scale": jnp.ones(3)}}}


def rates(steps, **changes):
    optim = tiny_config(optim__lr=2.0, **{f"optim__{k}": v for k, v in changes.items()}).optim
    return np.asarray(jax.vmap(make_schedule(optim, steps))(jnp.arange(steps)))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.3, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 10])
def test_every_step_has_a_rate_between_zero_and_the_peak(schedule, warmup, steps):
    found = rates(steps, schedule=schedule, warmup=warmup)
    assert np.all(found > 0)
    assert np.all(found <= 2.0 + 1e-6)
    assert np.all(np.isfinite(found))
    if warmup < 1:
        assert np.isclose(found.max(), 2.0)


def test_known_answers():
    np.testing.assert_allclose(rates(4, schedule="linear", warmup=0.0, final_lr=0.5), [2.0, 1.75, 1.5, 1.25])
    np.testing.assert_allclose(rates(4, schedule="cosine", warmup=0.0, final_lr=0.0)[2], 1.0, rtol=1e-6)
    np.testing.assert_allclose(rates(8, schedule="constant", warmup=0.5)[:5], [0.4, 0.8, 1.2, 1.6, 2.0], rtol=1e-6)
    np.testing.assert_allclose(rates(8, schedule="constant", warmup=0.5, start_lr=0.5)[0], 2 * 0.6, rtol=1e-6)
    np.testing.assert_allclose(rates(9, schedule="rsqrt", warmup=0.0, final_lr=0.4)[[3, 8]], [1.0, 0.8], rtol=1e-6)


@pytest.mark.parametrize("name", sorted(DIRECTIONS))
def test_every_optimiser_descends(name):
    optim = tiny_config(optim__name=name, optim__lr=0.1, optim__weight_decay=0.01, optim__schedule="constant").optim
    optimizer = make_optimizer(optim, 10, PARAMS)

    @jax.jit
    def descend(params):
        def step(carry, _):
            params, opt_state = carry
            direction, opt_state = optimizer.direction.update(params, opt_state, params)
            return (jax.tree.map(lambda p, d: p - 0.1 * d, params, direction), opt_state), None

        return jax.lax.scan(step, (params, optimizer.direction.init(params)), None, 30)[0][0]

    def size(tree):
        return sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(tree))

    assert size(descend(PARAMS)) < 0.8 * size(PARAMS)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("freeze", ("kernal$",), r"config.optim.freeze: 'kernal\$' matches no parameter; nearest: block/q/kernel"),
        ("lr_groups", ("block/k/=0.1",), r"config.optim.lr_groups: 'block/k/' matches no parameter; nearest"),
        ("lr_groups", ("kernel",), "'kernel' is not of the form 'regex=multiplier'"),
        ("lr_groups", ("kernel=-1",), "not of the form"),
        ("lr_groups", ("kernel=nan",), "not of the form"),
        ("project", ("kernal$=1",), r"config.optim.project: 'kernal\$' matches no parameter; nearest: block/q/kernel"),
        ("project", ("kernel=-1",), "'kernel=-1' is not of the form 'regex=bound', such as"),
        ("project", ("kernel",), "not of the form 'regex=bound'"),
        ("decay_exclude", ("embeding",), "config.optim.decay_exclude: 'embeding' matches no parameter"),
        ("freeze", ("(",), "not a regular expression"),
        ("freeze", (".",), "every parameter is frozen"),
        ("name", "adamww", "did you mean 'adamw'"),
        ("schedule", "cosin", "did you mean 'cosine'"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(field, value, message):
    optim = tiny_config(**{f"optim__{field}": value}).optim
    with pytest.raises(ConfigError, match=message):
        make_optimizer(optim, 10, PARAMS)


def test_what_is_frozen_cannot_be_projected():
    optim = tiny_config(optim__project=("kernel=1",), optim__freeze=("q/kernel",)).optim
    with pytest.raises(ConfigError, match=r"config.optim.project: 'block/q/kernel' is frozen"):
        make_optimizer(optim, 10, PARAMS)


def test_projection_cuts_what_the_first_rule_names_and_nothing_else():
    optimizer = make_optimizer(tiny_config(optim__project=("bias=0.25", "q=0.5")).optim, 10, PARAMS)
    found = project(optimizer, jax.tree.map(lambda p: -3 * p, PARAMS))["block"]
    np.testing.assert_array_equal(found["q"]["kernel"], -0.5)
    np.testing.assert_array_equal(found["q"]["bias"], -0.25)
    np.testing.assert_array_equal(found["norm"]["scale"], -3)


def test_default_exclusions_may_find_nothing():
    assert make_optimizer(tiny_config().optim, 10, {"w": jnp.ones(3)}) is not None


def test_lamb_steps_by_the_norm_of_each_layer_whether_or_not_they_lie_stacked():
    layers = [jax.random.normal(jax.random.key(i), (3, 4)) * 4.0**i for i in range(2)]
    slopes = [jax.random.normal(jax.random.key(9 - i), (3, 4)) for i in range(2)]
    optim = tiny_config(optim__name="lamb", optim__weight_decay=0.1, optim__clip=0.0).optim

    def direction(params, grads):
        optimizer = make_optimizer(optim, 10, params)
        return optimizer.direction.update(grads, optimizer.direction.init(params), params)[0]

    def tree(values, bias):
        return {"blocks": {"kernel": values, "bias": bias}}

    biases = jnp.arange(8.0).reshape(2, 4)
    stacked = direction(tree(jnp.stack(layers), biases), tree(jnp.stack(slopes), biases))["blocks"]
    for i in range(2):
        np.testing.assert_allclose(jnp.linalg.norm(stacked["kernel"][i]), jnp.linalg.norm(layers[i]), rtol=1e-5)
        adam = jnp.sign(slopes[i]) + 0.1 * layers[i]
        np.testing.assert_allclose(
            stacked["kernel"][i] / jnp.linalg.norm(stacked["kernel"][i]), adam / jnp.linalg.norm(adam), atol=1e-5
        )
    np.testing.assert_allclose(stacked["bias"], jnp.sign(biases), atol=1e-5)
    plain = {"layer": layers[0]}
    alone = direction(plain, {"layer": slopes[0]})["layer"]
    np.testing.assert_allclose(alone, stacked["kernel"][0], rtol=1e-5)


def test_select_and_merge_are_inverse():
    chosen = {"block": {"q": {"kernel": True, "bias": False}, "norm": {"scale": True}}}
    part = select(PARAMS, chosen)
    assert len(jax.tree.leaves(part)) == 2
    assert jax.tree.structure(merge(part, PARAMS)) == jax.tree.structure(PARAMS)
