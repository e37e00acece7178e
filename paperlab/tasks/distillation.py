"""Classification of images learned from what a teacher says to them, and from nothing else.

    l = - sum_k p_k log q_k        p = softmax(teacher / T),   q = softmax(student / T)

No label enters the loss: the teacher answers for the very images that the student sees, crops and mixtures alike. Metrics are those
of classification, against the labels, and `agreement`: how often both name the same class. The teacher is a finished run of a
classification task, `config.task.teacher=DIR`. It lies in the task's state and in every checkpoint: a run goes on with the weights
that it began with.

Source: kd_loss of SReT (arXiv 2111.05297); soft labels alone: MEAL V2, arXiv 2009.08453.
"""

from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from paperlab import workdir as workdirs
from paperlab.discovery import find
from paperlab.errors import ConfigError
from paperlab.limits import above
from paperlab.tasks import classification
from paperlab.tasks.classification import Classification, Metrics
from paperlab.training.checkpoint import restore_params, restore_state

DATA = classification.DATA
DEFAULTS = {
    **classification.DEFAULTS,
    "teacher": "",  # work directory of a finished run
    "temperature": 1.0,
}
LIMITS = {**classification.LIMITS, "temperature": above(0)}


def soft_cross_entropy(student: jax.Array, teacher: jax.Array, temperature: float = 1.0) -> jax.Array:
    """Cross-entropy of the teacher's distribution and the student's, logits [..., classes] -> losses [...], float32 or wider."""
    wide = jnp.promote_types(jnp.result_type(student, teacher), jnp.float32)
    p = jax.nn.softmax(teacher.astype(wide) / temperature)
    return -(p * jax.nn.log_softmax(student.astype(wide) / temperature)).sum(-1)


def make(config: ConfigDict) -> "Distillation":
    """The task that `config` describes; the teacher is read when it is needed."""
    return Distillation(config)


def check(config: ConfigDict) -> None:
    """Raises ConfigError for options that only labels have; a teacher is asked for when training starts."""
    task = config.task
    if task.loss != "softmax" or task.label_smoothing:
        raise ConfigError(
            "config.task.loss, config.task.label_smoothing: no label enters the loss of distillation; leave them"
        )


class Distillation(Classification):
    """The student is `config.model`. State: {"student": its further collections, "teacher": the teacher's variables}."""

    @cached_property
    def teacher(self) -> tuple[Classification, Any]:
        """The teacher's task and variables. Raises ConfigError for a run of another task, or of other classes."""
        if not self.config.task.teacher:
            raise ConfigError("config.task.teacher='': name the work directory of a finished run of classification")
        place = Path(self.config.task.teacher)
        try:
            config = workdirs.read_config(place)
            with jax.ensure_compile_time_eval():
                params, step = restore_params(place)
                state, _ = restore_state(place, step=step)
        except ConfigError as error:
            raise ConfigError(f"config.task.teacher={place}: {error}") from error
        task = find("tasks", config.task.name).make(config)
        if not isinstance(task, Classification):
            raise ConfigError(
                f"config.task.teacher={place}: it learned {config.task.name}; name a run of classification"
            )
        if task.images.classes != self.images.classes:
            raise ConfigError(
                f"config.task.teacher={place}: it tells {task.images.classes} classes, these images have "
                f"{self.images.classes}; name another run"
            )
        return task, {**params, **state.get("student", state)}

    def init(self, key: jax.Array, batch: dict) -> tuple[Any, Any]:
        """Parameters of the student; its further collections and the teacher."""
        params, collections = super().init(key, batch)
        return params, {"student": collections, "teacher": self.teacher[1]}

    def loss(
        self, params: Any, state: Any, batch: dict, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, jax.Array, dict]:
        """Sum of weighted losses, sum of weights, and {metrics, state}."""
        del step
        logits, collections = self.forward(params, state["student"], batch["images"], key)
        metrics = self._compared(logits, self._taught(state, batch), batch)
        return *metrics["loss"], {"metrics": metrics, "state": {**state, "student": collections}}

    def evaluate(self, params: Any, state: Any, batch: dict) -> Metrics:
        """(sum, weight) pairs of one batch; the loss is that of training."""
        return self._compared(self.logits(params, state, batch["images"]), self._taught(state, batch), batch)

    def logits(self, params: Any, state: Any, images_BxXxYxC: jax.Array) -> jax.Array:
        """What the student says, [B, classes]."""
        return super().logits(params, state["student"], images_BxXxYxC)

    def _taught(self, state: Any, batch: dict) -> jax.Array:
        return jax.lax.stop_gradient(Classification.logits(self.teacher[0], state["teacher"], {}, batch["images"]))

    def _compared(self, student: jax.Array, teacher: jax.Array, batch: dict) -> Metrics:
        weights = batch["weights"]
        losses = soft_cross_entropy(student, teacher, self.config.task.temperature)
        same = student.argmax(-1) == teacher.argmax(-1)
        own = {"loss": losses, "agreement": same}
        found = {name: ((values * weights).sum(), weights.sum()) for name, values in own.items()}
        return {**self.metrics(student, batch), **found}
