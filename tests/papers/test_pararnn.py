"""The room of ParaRNN: recipes have the paper's sizes, arms differ in what they say, and measurements measure what they say."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas.bench import timing
from paperlab.config import load_experiment, resolve
from paperlab.discovery import find
from paperlab.errors import ConfigError
from paperlab.evidence import Laboratory
from paperlab.layers.block_diagonal import BlockDiagonal
from paperlab.papers.pararnn import numerics, speed, trained
from paperlab.recurrence import check_cell
from paperlab.training import paths
from paperlab.training.optimizer import make_optimizer, make_schedule
from tests.recurrence.laws import QUICK


def recipe(variant, **model):
    config = load_experiment(f"experiments/pararnn.py:{variant}")
    config.model.update(model)
    config = resolve(config)
    return config, find("tasks", config.task.name).make(config)


@pytest.mark.parametrize("cell", ["", "_lstm"])
@pytest.mark.parametrize(
    ("variant", "parameters", "tokens", "lr"),
    [
        ("full_400m", 400e6, 10.5e9, 5e-3),
        ("full_1b", 1e9, 28.8e9, 3e-3),
        ("full_2b9", 2.9e9, 57.7e9, 2e-3),
        ("full_7b", 7e9, 138.4e9, 3e-3),
    ],
)
def test_the_paper_s_recipes(variant, parameters, tokens, lr, cell):
    config, task = recipe(variant + cell)
    params, _ = jax.eval_shape(task.init, jax.random.key(0), task.batch_spec())
    assert abs(sum(leaf.size for leaf in jax.tree.leaves(params)) / parameters - 1) < 0.02
    assert abs(config.train.steps * task.tokens_per_batch / tokens - 1) < 0.01
    lr = 3e-3 if variant + cell == "full_400m_lstm" else lr
    schedule = make_schedule(config.optim, config.train.steps)
    assert float(schedule(config.train.steps // 10)) == pytest.approx(lr, rel=0.01)
    assert float(schedule(config.train.steps)) == pytest.approx(0, abs=1e-9)
    bounds = paths.flatten(make_optimizer(config.optim, config.train.steps, params).bounds)
    held = {name.rpartition("cell/")[2] for name, bound in bounds.items() if bound == 0.5}
    assert held == ({"a", "p"} if cell else {"a"})
    assert all(bound in (0.5, float("inf")) for bound in bounds.values())


def test_arms_of_parity_differ_in_their_bound_or_their_cell_alone():
    configs = {arm: trained.parity_config(arm).to_dict() for arm in ("parity", "parity_clip09", "parity_linear")}
    project = {arm: config["optim"].pop("project") for arm, config in configs.items()}
    cells = {arm: config["mixers"]["pararnn"].pop("cell") for arm, config in configs.items()}
    assert project == {"parity": (), "parity_clip09": (r"mixer/cell/(a|p)$=0.9",), "parity_linear": ()}
    assert cells == {"parity": "gru", "parity_clip09": "gru", "parity_linear": "linear"}
    for config in configs.values():
        config.pop("variant")
    assert all(config == configs["parity"] for config in configs.values())


@pytest.mark.parametrize("mixer", ["pararnn", "attention"])
def test_the_cell_only_model_steps_as_it_reads(mixer):
    config = load_experiment("experiments/pararnn.py:keep")
    config.model.update(mixer=mixer, width=8, heads=2)
    config.optim.project = ()
    config.task.vocab_size = 5
    model = find("tasks", "keep_nth").make(resolve(config)).model
    tokens = jax.random.randint(jax.random.key(0), (2, 6), 0, 5)
    params = jax.jit(model.init, compiler_options=QUICK)(jax.random.key(1), tokens)

    @partial(jax.jit, compiler_options=QUICK)
    def both(params, tokens):
        whole, _ = model.apply(params, tokens)
        state, rows = model.zero_state(2, 6), []
        first, state = model.apply(params, tokens[:, :3], state=state)
        for t in range(3, 6):
            logits, state = model.apply(params, tokens[:, t], state, jnp.full((2,), t), method="step")
            rows.append(logits)
        return whole, jnp.concatenate([first, jnp.stack(rows, 1)], 1)

    whole, parts = both(params, tokens)
    assert whole.shape == (2, 6, 5)
    np.testing.assert_allclose(whole, parts, atol=2e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixer": "parann"}, "config.model.mixer='parann'"),
        ({"heads": 3}, "config.model.heads=3"),
        ({"dtype": "float64"}, "JAX_ENABLE_X64"),
        ({"embedding_std": 0.0}, "config.model.embedding_std"),
    ],
)
def test_a_cell_only_model_that_cannot_be(changes, message):
    with pytest.raises(ConfigError, match=message):
        recipe("parity", **changes)


def test_what_was_learned_is_run_in_parallel_as_it_was_learned():
    """The parallel application of a trained model, to a tolerance, is the sequential one; and the length is what was asked for."""
    _, task = recipe("parity", width=4)
    params = jax.jit(task.model.init, compiler_options=QUICK)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    with jax.enable_x64(True):
        solved = trained.applied(task, params, 9, mode="parallel", iterations=9, tolerance=1e-12)
        exact = trained.applied(task, params, 9, mode="sequential")
    assert solved.outputs.shape == (trained.WORDS, 9, 4)
    assert solved.outputs.dtype == jnp.float64
    assert 1 <= solved.iterations.max() <= 9
    np.testing.assert_allclose(solved.outputs, exact.outputs, atol=1e-11)


def test_a_drawn_layer_is_the_mixer_s():
    """The map from inputs to gates of the numerical claims is the mixer's block-diagonal one, to the last head."""
    heads, width = 2, 4
    made = numerics.recipe("gru", width, heads)
    with jax.enable_x64(True):
        one = numerics.layer("gru", 3, 7, rows=2, width=width, heads=heads)
        inputs, maps, _ = jax.random.split(jax.random.key(7), 3)
        bound = made.bound(width // heads, heads)
        kernel = jax.random.uniform(maps, (heads, 2, 3, 2), jnp.float64, -bound, bound)
        x = jax.random.normal(inputs, (2, 3, heads, 2), jnp.float64).reshape(2, 3, width)
        layer = BlockDiagonal(width, 3, heads, lambda *_: kernel, lambda *_: made.bias(), jnp.float64)
        fed = layer.apply({"params": {"kernel": kernel, "bias": made.bias().astype(jnp.float64)}}, x)
    np.testing.assert_allclose(one.x, fed, atol=1e-14)
    np.testing.assert_allclose(bound, (6 / (2 + 4)) ** 0.5)


def test_counting_iterations():
    assert numerics.first_below(np.array([1.0, 1e-3, 1e-10, 1e-20])) == 2
    assert numerics.first_below(np.array([1.0, np.nan, 1e-3])) is None


def test_scans_are_counted_in_inner_programs_too():
    def twice(x):
        return jax.lax.scan(
            lambda c, _: (jax.lax.scan(lambda d, _: (d + 1, None), c, None, length=5)[0], None), x, None, 3
        )

    assert numerics._scans(twice, 5, (0.0,)) == numerics._scans(twice, 3, (0.0,)) == 1
    assert numerics._scans(twice, 4, (0.0,)) == 0


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_the_ways_that_are_timed_compute_the_same(cell):
    arrays = speed.inputs(cell, 2, 5, 2)
    run = partial(partial, speed.run.__wrapped__, cell)
    fused, parallel, sequential = (
        jax.jit(run(how), compiler_options=QUICK)(arrays) for how in ("fused", "parallel", "sequential")
    )
    np.testing.assert_allclose(parallel, sequential, atol=1e-5)
    np.testing.assert_allclose(fused, sequential, atol=1e-5)


def test_times_are_those_of_every_way(tmp_path):
    found = speed.at_one_length(Laboratory(tmp_path), "gru", rows=1, length=4, width=2, plan=timing.QUICK)
    assert set(found) == {"fused", "parallel", "sequential"}
    assert all(ms > 0 for ms in found.values())


def test_depth_grows_with_the_logarithm_of_the_length():
    by_length = speed.dependent_steps(Laboratory).details["by_length"]
    steps = [by_length[str(n)] for n in speed.LENGTHS]
    assert np.diff(steps).tolist() == [6] * 4  # two levels of the tree, three times


def test_table_6_runs_at_the_paper_s_size():
    for variant in trained.TABLE_6:
        config = trained.table_6_config(variant, "lstm")
        assert (config.model.width, config.data.sequence_length, config.data.batch_size) == (64, 100, 16)
        assert config.optim.project == (() if variant == "parity" else (r"mixer/cell/(a|p)$=0.9",))
        assert config.train.steps * 16 == 200 * 10_000
        assert config.optim.lr == 5e-4


def test_a_user_s_cell_of_the_claims_mixes_channels():
    w, x, h = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(((16, 16), (4, 1, 16), (4, 16))))
    check_cell(numerics.MIXING, {"w": w}, x, h)
    with pytest.raises(ValueError, match="depends on state"):
        check_cell(dataclasses.replace(numerics.MIXING, structure="diagonal"), {"w": w}, x, h)
