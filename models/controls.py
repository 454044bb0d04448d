"""Controls: weightings that each remove one property from which click confidence claims to gain.

A gain counts only if the method beats its controls. They are for ``clsd compare``; the export refuses them.
Columns are those of the **global** batch, ``[B]``, so a control is the same on any number of replicas.
"""

from __future__ import annotations

from clsd.features.tf_runtime import Tensor, tf


def constant(w: Tensor, positive: Tensor) -> Tensor:
    """Every click gets the mean weight of the batch's clicks: the scale without the information.

    Args:
        w: weights, float32 ``[B]``.
        positive: 1 for a click, float32 ``[B]``.

    Returns:
        float32 ``[B]``; ``w`` itself for a batch without clicks.
    """
    clicks = tf.reduce_sum(positive)
    mean = tf.reduce_sum(w * positive) / tf.maximum(clicks, 1.0)
    return tf.where(clicks > 0, tf.fill(tf.shape(w), mean), w)


def permuted(w: Tensor, positive: Tensor, seed: Tensor) -> Tensor:
    """The weights, permuted among the batch's clicks: the distribution without the assignment.

    Args:
        w: weights, float32 ``[B]``.
        positive: 1 for a click, float32 ``[B]``.
        seed: int64 ``[2]``; the same seed gives the same permutation.
    """
    clicks = tf.where(positive > 0)
    dealt = tf.random.experimental.stateless_shuffle(clicks[:, 0], seed=seed)
    return tf.tensor_scatter_nd_update(w, clicks, tf.gather(w, dealt))


def reweighted(p: Tensor, exponent: float) -> tuple[Tensor, Tensor]:
    """R-CE: weights p**exponent for clicks and (1 - p)**exponent for non-clicks, without gradient.

    Returns:
        (weights of clicks, weights of non-clicks), float32 ``[B]`` each.

    Source: Wang et al. 2021, "Denoising Implicit Feedback for Recommendation".
    """
    p = tf.clip_by_value(tf.stop_gradient(p), 1e-7, 1.0 - 1e-7)  # a weight of 0 would have no logarithm
    return tf.pow(p, exponent), tf.pow(1.0 - p, exponent)


def truncated(p: Tensor, positive: Tensor, share: Tensor) -> Tensor:
    """T-CE: weight 0 for the ``share`` of the batch's clicks with the largest loss (the smallest p), else 1.

    Clicks of equal p are dropped together or not at all.

    Args:
        p: predictions, float32 ``[B]``.
        positive: 1 for a click, float32 ``[B]``.
        share: share of clicks to drop, scalar in [0, 1).

    Returns:
        float32 ``[B]``.

    Source: Wang et al. 2021, see :func:`reweighted`.
    """
    rising = tf.sort(tf.boolean_mask(p, positive > 0))
    dropped = tf.cast(tf.floor(share * tf.cast(tf.size(rising), tf.float32)), tf.int32)
    # The first click that stays is the threshold; infinity if all are dropped.
    bar = tf.concat([rising, [float("inf")]], axis=0)[dropped]
    return tf.where(tf.logical_and(positive > 0, p < bar), 0.0, 1.0)


def drop_share(steps: Tensor, share: float, ramp: int) -> Tensor:
    """T-CE's schedule: rises linearly from 0 to ``share`` in ``ramp`` steps."""
    ramp_share = tf.cast(steps, tf.float32) / ramp if ramp else tf.ones([])
    return share * tf.clip_by_value(ramp_share, 0.0, 1.0)
