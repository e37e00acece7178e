"""What must exist before the first step: mesh, shardings, initial state and the compiled step.

The state is initialised under jit with the sharding of every leaf given: no device ever holds the whole of it, and the
step sees the same layout from the first call to the last, so it compiles once. It is compiled ahead of time: another
layout is an error, not a second compilation.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from paperlab import distributed
from paperlab.errors import ConfigError
from paperlab.training import data, guard, memory, paths
from paperlab.training.memory import local_bytes
from paperlab.training.mesh import Placement, check_batch, make_mesh
from paperlab.training.optimizer import Optimizer, make_optimizer, project, select
from paperlab.training.protocol import Batch, Task
from paperlab.training.state import TrainState
from paperlab.training.step import make_train_step

INIT = 2**32 - 1  # folded into the run's key for initialisation; steps fold in 0, 1, 2 ...


class Setup(NamedTuple):
    """shapes: TrainState of ShapeDtypeStructs with shardings; batch: the same for one global batch."""

    mesh: Mesh
    placement: Placement
    optimizer: Optimizer
    shapes: TrainState
    batch: Batch


def prepare(config: Any, task: Task) -> Setup:
    """Mesh, placement, optimiser and abstract state of a run; allocates nothing on the devices."""
    mesh = make_mesh(config.mesh)
    batch = data.batch_spec(task, mesh)
    check_batch(jax.tree.leaves(batch)[0].shape[0], mesh, config.train.micro_batches)
    shapes, optimizer = abstract_state(config, task, batch)
    placement = Placement(mesh, task, config.mesh.rules, shapes.params)
    shardings = placement.whole(shapes)
    placed = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    return Setup(mesh, placement, optimizer, placed, batch)


def abstract_state(config: Any, task: Task, batch: Batch) -> tuple[TrainState, Optimizer]:
    """Shapes of the whole state, and the optimiser, whose rules need the parameters' paths."""
    params, _ = jax.eval_shape(task.init, jax.random.key(0), batch)
    optimizer = make_optimizer(config.optim, config.train.steps, params)
    return jax.eval_shape(partial(initial_state, config, task, optimizer), jax.random.key(0), batch), optimizer


def initial_state(config: Any, task: Task, optimizer: Optimizer, key: jax.Array, batch: Batch) -> TrainState:
    """The state before step 0; pure, so that it can be jitted with shardings or vmapped over keys."""
    params, task_state = task.init(jax.random.fold_in(key, INIT), batch)
    params = project(optimizer, params)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        data_index=jnp.zeros((), jnp.int32),
        params=params,
        state=task_state,
        opt_state=optimizer.direction.init(select(params, optimizer.trained)),
        ema=jax.tree.map(jnp.copy, params) if config.train.ema_decay else None,
        guard=guard.fresh(),
    )


def init_state(config: Any, task: Task, setup: Setup, batch: Batch) -> TrainState:
    """Initialises the state where it will live."""
    shardings = jax.tree.map(lambda x: x.sharding, setup.shapes)
    make = jax.jit(partial(initial_state, config, task, setup.optimizer), out_shardings=shardings)
    return make(jax.random.key(config.seed), batch)


def compile_step(config: Any, task: Task, setup: Setup) -> jax.stages.Compiled:
    """The step `(state, batch, key) -> (state, metrics)`, compiled for the layout of `setup`; the state is donated."""
    train = config.train
    rules = guard.rules(config.faults)
    step = make_train_step(
        task, setup.optimizer, micro_batches=train.micro_batches, ema_decay=train.ema_decay, rules=rules
    )
    shardings = jax.tree.map(lambda x: x.sharding, setup.shapes)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, setup.placement.replicated))
    key = jax.eval_shape(jax.random.key, 0)
    lowered = jitted.lower(setup.shapes, setup.batch, key)
    try:
        compiled = lowered.compile()
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        line = str(error).split("\n")[0]
        raise ConfigError(f"config.data.batch_size: no memory for the step ({line}): {memory.STEP_CURE}") from error
    distributed.gather()  # compiling takes longer on one than on another: the first collective begins together
    return compiled


def parameters_text(setup: Setup) -> str:
    """The parameter table, what optimiser, average and task state add, and the whole state."""
    shardings = jax.tree.map(lambda x: x.sharding, setup.shapes.params)
    table = paths.parameter_table(setup.shapes.params, shardings, setup.placement.notes)
    rest = {
        "task state": setup.shapes.state,
        "optimiser state": setup.shapes.opt_state,
        "moving average": setup.shapes.ema,
    }
    rest = {**{name: tree for name, tree in rest.items() if jax.tree.leaves(tree)}, "whole state": setup.shapes}
    lines = [
        f"{name}: {paths.count(tree):,} numbers, {local_bytes(tree):,} bytes/device" for name, tree in rest.items()
    ]
    shape = ", ".join(f"{axis}={size}" for axis, size in setup.mesh.shape.items())
    return f"{table}{'\n'.join(lines)}\nmesh: {shape}\n"
