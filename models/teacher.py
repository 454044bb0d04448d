"""A separate teacher: a second network whose variables follow the student's."""

from __future__ import annotations

from collections.abc import Callable

from clsd.features.tf_runtime import Network, Tensor, tf
from clsd.models.settings import ConfidenceSettings


class TeacherUpdates:
    """When and how the teacher follows the student, inside the step's graph and in cross-replica context.

    Args:
        settings: the method's settings.
        teacher, student: two built networks by the same constructor; the teacher is still trainable.
        warmup_steps: steps after which the teacher is first copied.
    """

    def __init__(self, settings: ConfidenceSettings, teacher: Network, student: Network, warmup_steps: int) -> None:
        self._settings, self._warmup = settings, warmup_steps
        # Pair the variables first: making the teacher untrainable changes the order of a nested layer's variables.
        self._pairs = list(zip(teacher.variables, student.variables, strict=True))
        teacher.trainable = False

    def copy(self) -> None:
        """Copy the student's variables to the teacher."""
        for teacher_variable, student_variable in self._pairs:
            teacher_variable.assign(student_variable)

    def before_step(self, step: Tensor) -> None:
        """Copy at the end of warm-up, and when a frozen teacher is refreshed."""
        weighted_steps = step - self._warmup
        due = tf.equal(weighted_steps, 0)
        if self._settings.teacher == "frozen" and self._settings.refresh_steps:
            due = tf.logical_and(weighted_steps >= 0, tf.equal(weighted_steps % self._settings.refresh_steps, 0))
        _in_cross_replica_context(lambda: _run_if(due, self.copy))

    def after_forward(self, step: Tensor) -> None:
        """``previous``: copy the weights that this step is about to change."""
        if self._settings.teacher == "previous":
            _in_cross_replica_context(lambda: _run_if(step >= self._warmup, self.copy))

    def after_update(self, step: Tensor) -> None:
        """``ema``: teacher = decay * teacher + (1 - decay) * student."""
        if self._settings.teacher == "ema":
            _in_cross_replica_context(lambda: _run_if(step >= self._warmup, self._move))

    def _move(self) -> None:
        decay = self._settings.ema_decay
        for teacher_variable, student_variable in self._pairs:
            teacher_variable.assign(
                decay * teacher_variable + (1.0 - decay) * student_variable
                if teacher_variable.dtype.is_floating
                else student_variable
            )


def _in_cross_replica_context(update: Callable[[], object]) -> None:
    # Variables of users' models have no aggregation, so copies are made in cross-replica context.
    tf.distribute.get_replica_context().merge_call(lambda strategy: update())


def _run_if(due: Tensor, update: Callable[[], object]) -> None:
    def updated() -> Tensor:
        update()  # in a graph, automatic control dependencies run the assignments
        return tf.constant(0)

    tf.cond(due, updated, lambda: tf.constant(0))
