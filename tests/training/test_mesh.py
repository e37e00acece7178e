"""Meshes: the same losses on each, one compilation, state sharded like its parameters, clear refusals."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from paperlab.errors import ConfigError
from paperlab.training import data, setup
from paperlab.training.mesh import Placement, check_batch, make_mesh, process_share
from tests.training.tiny_task import TinyTask, tiny_config

MESHES = [(8, 1, 1), (2, 4, 1), (2, 2, 2), (1, 4, 2)]


def on(shape, **changes):
    return tiny_config(mesh__data=shape[0], mesh__fsdp=shape[1], mesh__tensor=shape[2], **changes)


def first_losses(config, task, steps=5):
    """Losses of the first steps, the last state, and how many programs named train_step were compiled."""
    compiled = []

    def listen(event, _, **kw):
        if event == "/jax/core/compile/backend_compile_duration" and "train_step" in kw.get("fun_name", ""):
            compiled.append(kw["fun_name"])

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        ready = setup.prepare(config, task)
        with jax.set_mesh(ready.mesh):
            dataset = data.open_split(task, "train", ready.mesh)
            state = setup.init_state(config, task, ready, data.to_global(dataset[0], ready.mesh))
            step = setup.compile_step(config, task, ready)
            key = jax.device_put(jax.random.key(config.seed), ready.placement.replicated)
            losses = []
            for batch in data.global_batches(dataset, ready.mesh, stop=steps):
                state, metrics = step(state, batch, key)
                total, weight = metrics["loss"]
                losses.append(float(total) / float(weight))
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    return losses, state, len(compiled)


@pytest.fixture(scope="module")
def single_device_losses():
    return first_losses(on((1, 1, 1)), TinyTask())[0]


@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_first_losses_equal_those_of_one_device_and_the_step_compiles_once(shape, single_device_losses):
    losses, state, compilations = first_losses(on(shape), TinyTask())
    np.testing.assert_allclose(losses, single_device_losses, rtol=1e-5)
    assert compilations == 1
    assert len(state.params["hidden"]["kernel"].sharding.device_set) == 8


def test_micro_batches_on_a_mesh(single_device_losses):
    losses, _, compilations = first_losses(on((2, 2, 1), train__micro_batches=2), TinyTask())
    np.testing.assert_allclose(losses, single_device_losses, rtol=1e-5)
    assert compilations == 1


def test_moments_and_average_lie_where_their_parameters_lie():
    config = on((2, 2, 2), train__ema_decay=0.9)
    _, state, _ = first_losses(config, TinyTask(), steps=2)
    adam = next(
        part for part in jax.tree.leaves(state.opt_state, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(part, "mu")
    )
    kernel = state.params["hidden"]["kernel"]
    assert kernel.sharding.spec == P("fsdp", "tensor")
    for twin in (adam.mu, adam.nu, state.ema):
        assert twin["hidden"]["kernel"].sharding.is_equivalent_to(kernel.sharding, 2)
    assert kernel.addressable_shards[0].data.shape == (2, 8)


def test_dimension_that_does_not_divide_is_left_whole_and_named():
    class Odd(TinyTask):
        sharding = ((r"hidden/kernel$", ("fsdp", "tensor")), (r"bias$", ("tensor",)))

    text = setup.parameters_text(setup.prepare(on((1, 8, 1)), Odd()))
    assert "hidden/kernel  4x16   float32     64  replicated (4 is not a multiple of fsdp=8)" in text
    assert "mesh: data=1, fsdp=8, tensor=1" in text


def test_a_parameter_without_rule_is_cut_over_fsdp_along_its_largest_dimension():
    shapes = {"stack": jax.ShapeDtypeStruct((64, 8, 128), np.float32), "small": jax.ShapeDtypeStruct((8,), np.float32)}
    placed = Placement(make_mesh(on((2, 4, 1)).mesh), TinyTask(), (), shapes).params(shapes)
    assert placed["stack"].spec == P(None, None, "fsdp")
    assert placed["small"].spec == P()


def test_rules_of_the_config_come_first():
    config = on((2, 2, 2), mesh__rules=("hidden/kernel=-,fsdp+tensor",))
    ready = setup.prepare(config, TinyTask())
    assert ready.shapes.params["hidden"]["kernel"].sharding.spec == P(None, ("fsdp", "tensor"))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 1, 1), "3 x 1 x 1 = 3 does not divide the 8 devices"),
        ((-1, 3, 1), "fsdp x tensor = 3 x 1 does not divide the 8 devices"),
        ((16, 1, 1), "does not divide the 8 devices"),
    ],
)
def test_sizes_that_do_not_divide_the_devices_are_refused(shape, message):
    with pytest.raises(ConfigError, match=message):
        make_mesh(on(shape).mesh)


@pytest.mark.parametrize("rule", ["kernel=model", "kernel", "=fsdp"])
def test_malformed_rules_are_refused(rule):
    with pytest.raises(ConfigError, match=r"config.mesh.rules: .* is not of the form"):
        setup.prepare(on((2, 2, 2), mesh__rules=(rule,)), TinyTask())


def test_rule_that_matches_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"config.mesh.rules: 'kernal' matches no parameter; nearest: .*kernel"):
        setup.prepare(on((2, 2, 2), mesh__rules=("kernal=fsdp",)), TinyTask())


def test_rows_that_do_not_come_out_even_are_refused():
    mesh = make_mesh(on((4, 2, 1)).mesh)
    check_batch(16, mesh, 2)
    with pytest.raises(ConfigError, match="12 rows of a batch over data x fsdp = 8"):
        check_batch(12, mesh, 1)
    with pytest.raises(ConfigError, match=r"config.train.micro_batches=3"):
        check_batch(16, mesh, 3)


def test_data_takes_what_is_left():
    assert dict(make_mesh(on((-1, 2, 2)).mesh).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert process_share(make_mesh(on((-1, 1, 1)).mesh)) == (0, 1)
