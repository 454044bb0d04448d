"""Controls: what a gain must be held against before it may be called one.

Each replaces the weights of a step by weights that lack one thing which click confidence claims to have. They are for
comparisons (``clsd compare``) and are refused by the export. Columns are those of the **global** batch, ``[B]``, so that a
control is the same on any number of replicas.
"""

from __future__ import annotations

from clsd.features.tf_runtime import Tensor, tf


def constant(w: Tensor, positive: Tensor) -> Tensor:
    """The mean weight of the batch's clicks for every click: the scale without the information.

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
    """The weights dealt out anew among the batch's clicks: their distribution without their places.

    Args:
        w: weights, float32 ``[B]``.
        positive: 1 for a click, float32 ``[B]``.
        seed: int64 ``[2]``; the same seed gives the same deal.
    """
    clicks = tf.where(positive > 0)
    dealt = tf.random.experimental.stateless_shuffle(clicks[:, 0], seed=seed)
    return tf.tensor_scatter_nd_update(w, clicks, tf.gather(w, dealt))


def reweighted(p: Tensor, exponent: float) -> tuple[Tensor, Tensor]:
    """R-CE: a click weighs p**exponent, a non-click (1 - p)**exponent, without gradient.

    Returns:
        (weights of clicks, weights of non-clicks), float32 ``[B]`` each.

    Source: Wang et al. 2021, "Denoising Implicit Feedback for Recommendation".
    """
    p = tf.clip_by_value(tf.stop_gradient(p), 1e-7, 1.0 - 1e-7)  # a weight of 0 has no logarithm to correct by
    return tf.pow(p, exponent), tf.pow(1.0 - p, exponent)


def truncated(p: Tensor, positive: Tensor, share: Tensor) -> Tensor:
    """T-CE: 0 for the ``share`` of the batch's clicks with the largest loss (the smallest p), 1 for all else.

    Clicks of equal p fall together: none is dropped unless all of them are.

    Args:
        p: predictions, float32 ``[B]``.
        positive: 1 for a click, float32 ``[B]``.
        share: of the clicks to drop, scalar in [0, 1).

    Returns:
        float32 ``[B]``.

    Source: Wang et al. 2021, see :func:`reweighted`.
    """
    rising = tf.sort(tf.boolean_mask(p, positive > 0))
    dropped = tf.cast(tf.floor(share * tf.cast(tf.size(rising), tf.float32)), tf.int32)
    # The first click that stays sets the bar; an infinity stands for "nobody to drop".
    bar = tf.concat([rising, [float("inf")]], axis=0)[dropped]
    return tf.where(tf.logical_and(positive > 0, p < bar), 0.0, 1.0)


def drop_share(steps: Tensor, share: float, ramp: int) -> Tensor:
    """T-CE's schedule: from 0 to ``share`` in ``ramp`` steps, linearly."""
    grown = tf.cast(steps, tf.float32) / ramp if ramp else tf.ones([])
    return share * tf.clip_by_value(grown, 0.0, 1.0)
