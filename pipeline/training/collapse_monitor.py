"""Watch a run for collapse: weights that lower predictions, which lower the weights, until the model predicts almost 0."""

from __future__ import annotations

from typing import Any

from clsd.features.errors import UserError
from clsd.features.tf_runtime import Tensor, tf
from clsd.models import step_metrics
from clsd.models.settings import ConfidenceSettings
from clsd.pipeline.shared.config import MonitorSettings
from clsd.pipeline.shared.progress import warn
from clsd.pipeline.training.run_state import RunState, as_list, as_sums


def known_to_collapse(settings: ConfidenceSettings, ctr: float) -> str:
    """Why these settings are expected to collapse at this CTR; "" if they are not.

    If the teacher is the student or follows it, and weights come from its score alone (``blend: .inf``), the fixed point of
    training is p = max(0, 2 - 1 / CTR), or max(0, 1 - c / odds(CTR)) with a normaliser c. See docs/method.md.
    """
    if (
        not settings.weighted
        or settings.control != "none"
        or settings.source != "teacher"
        or settings.blend != float("inf")
    ):
        return ""
    if settings.teacher not in ("self", "previous", "ema") or ctr >= 0.5:
        return ""
    end = "every row whose CTR is below one half" if settings.normalise == "none" else "rows of low CTR"
    return (
        f"confidence.teacher: {settings.teacher} with confidence.blend: .inf is known to collapse at a CTR of {ctr:.1%}: "
        f"it drives the predictions of {end} to 0; set confidence.blend: 1.0, or confidence.teacher: frozen"
    )


class CollapseMonitor:
    """Sums the metrics of weighted steps over windows, and stops the run, or warns, if a window is out of bounds.

    The open window is part of the run's state, so a resumed run checks the same windows.

    Args:
        settings: the bounds (``train.monitor``).
    """

    def __init__(self, settings: MonitorSettings) -> None:
        self._settings = settings

    def watch(self, state: RunState, sums: Tensor, steps: int, done: int) -> None:
        """Add steps to the open window, and check it when it is complete.

        Args:
            state: the run's state; its window is updated.
            sums: metric sums of the steps.
            steps: number of steps.
            done: total number of finished steps, for the message.

        Raises:
            UserError: the run collapsed, and ``action`` is stop.
        """
        if state.collapsed:
            return
        state.window_sums = as_list(step_metrics.merged(tf.stack([as_sums(state.window_sums), sums])))
        state.window_steps += steps
        if state.window_steps >= self._settings.window_steps:
            self._check_window(state, done)

    def finish(self, state: RunState, done: int) -> None:
        """Check the last window of a run.

        A window of fewer than half of ``window_steps`` steps is ignored unless it is the run's only one.
        """
        window = self._settings.window_steps
        if state.weighted_steps < window or 2 * state.window_steps >= window:
            self._check_window(state, done)

    def _check_window(self, state: RunState, done: int) -> None:
        metrics = step_metrics.metrics_from(as_sums(state.window_sums))
        problem = self.problem({name: float(value) for name, value in metrics.items()})
        state.window_sums, state.window_steps = [], 0
        if not problem:
            return
        if self._settings.action == "stop":
            hint = "set confidence.blend: 1.0 or confidence.teacher: frozen; or lower that bound if small weights are intended"
            raise UserError("train", f"the run collapsed by step {done}: {problem}", hint)
        state.collapsed = f"{problem} by step {done}"
        warn(f"the run collapsed: {state.collapsed}")

    def problem(self, metrics: dict[str, Any]) -> str:
        """The metric that is out of bounds, and its bound; "" for a healthy window or one without clicks.

        Args:
            metrics: the window's :func:`clsd.models.step_metrics.metrics_from`.
        """
        bounds = self._settings
        if not metrics["ctr"] > 0:
            return ""
        ratio = metrics["predicted_ctr"] / metrics["ctr"]
        if ratio < bounds.predicted_over_real:
            return (
                f"the mean prediction is {ratio:.3g} of the CTR "
                f"(train.monitor.predicted_over_real: {bounds.predicted_over_real:g})"
            )
        share = metrics["effective_clicks"]
        if share < bounds.effective_clicks:
            return (
                f"the weights leave {share:.3g} of the clicks effective "
                f"(train.monitor.effective_clicks: {bounds.effective_clicks:g})"
            )
        if metrics["largest_weight"] < bounds.largest_weight:
            return (
                f"the largest weight of a click is {metrics['largest_weight']:.3g} "
                f"(train.monitor.largest_weight: {bounds.largest_weight:g})"
            )
        return ""
