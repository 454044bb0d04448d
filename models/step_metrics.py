"""Metric sums of a step over the global batch, and the metrics that follow from them."""

from __future__ import annotations

from clsd.features.tf_runtime import Tensor, tf
from clsd.models.replicas import gather

#: Sums over the global batch.
SUMS = ("rows", "loss", "predicted", "clicks", "weight", "weight_squared", "gate_loss", "gate_rows")
#: The sums, then the smallest and largest weight of a click (infinity and minus infinity without clicks).
METRIC_SUMS = (*SUMS, "least_weight", "largest_weight")


def local_metric_sums(sums: list[Tensor], w: Tensor, positive: Tensor) -> Tensor:
    """:data:`METRIC_SUMS` of this replica's rows, float32 ``[10]``.

    Args:
        sums: :data:`SUMS`, scalars.
        w: weights, float32 ``[B]``.
        positive: 1 for a click, float32 ``[B]``.
    """
    least = tf.reduce_min(tf.where(positive > 0, w, float("inf")))
    largest = tf.reduce_max(tf.where(positive > 0, w, float("-inf")))
    return tf.stack([*sums, least, largest])


def over_replicas(sums: Tensor) -> Tensor:
    """:data:`METRIC_SUMS` of the global batch, the same on every replica."""
    return merged(gather(sums[None]))


def merged(parts: Tensor) -> Tensor:
    """Merge metric sums of several batches or replicas: float32 ``[n, 10]`` to ``[10]``."""
    n = len(SUMS)
    sums = tf.reduce_sum(parts[:, :n], axis=0)
    least, largest = tf.reduce_min(parts[:, n], axis=0), tf.reduce_max(parts[:, n + 1], axis=0)
    return tf.concat([sums, [least, largest]], axis=0)


def empty_sums() -> Tensor:
    """The metric sums of no batch, float32 ``[10]``: merging them changes nothing."""
    return tf.constant([0.0] * len(SUMS) + [float("inf"), float("-inf")])


def metrics_from(sums: Tensor) -> dict[str, Tensor]:
    """Metrics from metric sums.

    They are: mean loss; predicted and real CTR; mean, smallest and largest weight of a click; effective sample size of
    the clicks as a share, ``(sum w)**2 / (n * sum w**2)``; and the gate's mean squared error. Without clicks, those of
    clicks are 0.
    """
    t = dict(zip(METRIC_SUMS, tf.unstack(sums), strict=True))
    n, clicks = t["rows"], t["clicks"]
    return {
        "loss": t["loss"] / n,
        "predicted_ctr": t["predicted"] / n,
        "ctr": clicks / n,
        "mean_weight": t["weight"] / tf.maximum(clicks, 1.0),
        "least_weight": tf.where(clicks > 0, t["least_weight"], 0.0),
        "largest_weight": tf.where(clicks > 0, t["largest_weight"], 0.0),
        "effective_clicks": tf.square(t["weight"]) / tf.maximum(clicks * t["weight_squared"], 1e-12),
        "gate_loss": t["gate_loss"] / tf.maximum(t["gate_rows"], 1.0),
    }
