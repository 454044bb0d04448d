"""The requirements that a model must meet before it is published."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from clsd.features.errors import OutOfBoundsError, UserError, did_you_mean
from clsd.pipeline.shared.headline_metrics import HEADLINE_METRICS

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


class Requirement(NamedTuple):
    """A bound of a metric, such as ``auc>=0.7``."""

    metric: str
    sign: str
    bound: float

    def __str__(self) -> str:
        return f"{self.metric}{self.sign}{self.bound:g}"


def parse_requirement(text: str, metrics: Iterable[str]) -> Requirement:
    """Parse a requirement of the command line, such as ``auc>=0.7``.

    Raises:
        UserError: the text is not a requirement, or the metric is unknown.
    """
    result = re.fullmatch(r"\s*([a-z_]+)\s*(>=|<=|>|<)\s*([-+.\deE]+)\s*", text)
    try:
        if result is None:
            raise ValueError
        requirement = Requirement(result[1], result[2], float(result[3]))
    except ValueError:
        raise UserError(f"--require {text}", "is not a bound of a metric", "write it like auc>=0.7") from None
    if requirement.metric not in {*metrics}:
        raise UserError(
            f"--require {text}", f"no metric {requirement.metric}", did_you_mean(requirement.metric, metrics)
        )
    return requirement


def enforce(metrics: Mapping[str, float], requirements: Iterable[Requirement]) -> None:
    """Refuse a model that misses a requirement.

    Raises:
        OutOfBoundsError: naming the metric, its value and its bound.
    """
    for requirement in requirements:
        value = metrics.get(requirement.metric)
        if value is None:
            what = f"{requirement.metric} is undefined for this model"
        elif not _OPERATORS[requirement.sign](value, requirement.bound):
            what = f"the model has {requirement.metric} {value:.6g}"
        else:
            continue
        raise OutOfBoundsError(f"--require {requirement}", what, "nothing was published")


def enforce_against(
    metrics: Mapping[str, float], served: Mapping[str, float], margins: Mapping[str, float], version: str
) -> None:
    """Refuse a model that is worse than the served version by more than a margin.

    Args:
        metrics, served: metrics of the model and of the served version. Metrics that the served version lacks are skipped.
        margins: allowed loss, by metric.
        version: the served version, for the message.

    Raises:
        OutOfBoundsError: naming the metric and both values.
    """
    for name, margin in margins.items():
        if name not in served:
            continue
        if name not in metrics:
            what = f"{name} is undefined for this model, and {served[name]:.6g} for the version served"
            raise OutOfBoundsError(f"--against {version}", what, "nothing was published")
        worse = (served[name] - metrics[name]) * HEADLINE_METRICS[name].better
        if worse > margin:
            what = f"{name} {metrics[name]:.6g} is worse than {served[name]:.6g} of the version served, by more than {margin:g}"
            raise OutOfBoundsError(
                f"--against {version}", what, "nothing was published; export.margins sets how much worse is allowed"
            )
