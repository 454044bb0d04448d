"""Watches a run for collapse: weights that feed on themselves until the model predicts next to nothing."""

from __future__ import annotations

from typing import Any

from clsd.models.settings import ConfidenceSettings
from clsd.pipeline.shared.config import MonitorSettings


def known_to_collapse(settings: ConfidenceSettings, ctr: float) -> str:
    """Why these settings are expected to collapse at this CTR, naming them; "" if they are not.

    A teacher that is the student, or follows it, with weights from its score alone (``blend: .inf``) has its fixed point at
    p = max(0, 2 - 1 / CTR), or max(0, 1 - c / odds(CTR)) with a normaliser c: see docs/method.md.
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
        f"it drives {end} to 0; set confidence.blend: 1.0, or confidence.teacher: frozen"
    )


class CollapseMonitor:
    """Looks at the figures of a window of weighted steps and says what is wrong with them.

    Args:
        settings: the bounds.
    """

    def __init__(self, settings: MonitorSettings) -> None:
        self._settings = settings

    def problem(self, metrics: dict[str, Any]) -> str:
        """What collapsed, with figure and bound; "" for a healthy window, or one without clicks.

        Args:
            metrics: what :func:`clsd.models.step_metrics.metrics` says of the window.
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
                f"no click weighs more than {metrics['largest_weight']:.3g} "
                f"(train.monitor.largest_weight: {bounds.largest_weight:g})"
            )
        return ""
