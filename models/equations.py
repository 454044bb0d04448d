"""The method's equations as pure functions of tensors.

Notation: s logit, p = sigmoid(s), y label in {0, 1}, q the teacher's score, g the gate's correction, c the normaliser.
All are float32 ``[B]`` except c, a scalar. Source: CLSD (arXiv 2309.16322); normaliser, blend, bounds and calibration
are ours, see docs/method.md.

>>> q, p, y = tf.constant([0.1, 0.3, 0.2]), tf.constant([0.1, 0.2, 0.3]), tf.constant([1.0, 1.0, 0.0])
>>> c = normaliser(moment_sums(q, p, y, alpha=1.0), "mean")
>>> w = positive_weight(confidence(q, tf.zeros(3), c), c, blend=1.0)
>>> [round(float(x), 2) for x in w[:2]]
[0.75, 1.25]
"""

from __future__ import annotations

import math

from clsd.features.tf_runtime import Tensor, tf


def confidence(q: Tensor, g: Tensor, c: Tensor, *, alpha: float = 1.0, eps: float = 0.02, a_max: float = 5.0) -> Tensor:
    """a = clip(q**alpha + g, eps * c, a_max * c), without gradient.

    Args:
        q: teacher's score, float32 ``[B]`` in [0, 1].
        g: gate's correction, float32 ``[B]``.
        c: normaliser, float32 scalar, above 0.
        alpha: exponent.
        eps, a_max: bounds in units of c, so they mean the same at a CTR of 0.5 % and of 50 %.

    Returns:
        float32 ``[B]``.
    """
    return tf.stop_gradient(tf.clip_by_value(_power(q, alpha) + g, eps * c, a_max * c))


def on_scale(q: Tensor, scale: str) -> Tensor:
    """q itself (``probability``), or its odds q / (1 - q) (``odds``); float32 ``[B]``.

    If a share r of the non-clicks is kept, every row's odds are 1 / r times those without sampling, and the normaliser
    removes this common factor. So weights from odds are the same for every r, while q saturates as r falls.
    """
    return q if scale == "probability" else q / tf.maximum(1.0 - q, 1e-6)


def positive_weight(a: Tensor, c: Tensor, blend: float) -> Tensor:
    """w = (1 + blend * a / c) / (1 + blend); a / c for an infinite blend. float32 ``[B]``."""
    ratio = a / c
    return ratio if math.isinf(blend) else (1.0 + blend * ratio) / (1.0 + blend)


def confidence_of_weight(w: Tensor, blend: float) -> Tensor:
    """a / c from w, the inverse of :func:`positive_weight`, ``[B]``; 1 for a blend of 0, where w does not depend on it."""
    if math.isinf(blend):
        return w
    return tf.ones_like(w) if blend == 0 else ((1.0 + blend) * w - 1.0) / blend


def row_losses(s: Tensor, y: Tensor, w: Tensor, non_click: Tensor = 1.0, target: Tensor = None) -> Tensor:
    """-u (t log p + (1 - t) log(1 - p)), computed from the logit, float32 ``[B]``.

    Args:
        s: logit, float32 ``[B]``.
        y: label, float32 ``[B]`` of 0 and 1.
        w, non_click: u of a click and of a non-click, float32 ``[B]`` or scalar.
        target: t in [0, 1], float32 ``[B]``; the label if None.
    """
    u = tf.where(y > 0, w, non_click)
    return u * tf.nn.sigmoid_cross_entropy_with_logits(labels=y if target is None else target, logits=s)


def gate_losses(q: Tensor, g: Tensor, y: Tensor, centre: Tensor, *, kind: str, alpha: float) -> tuple[Tensor, Tensor]:
    """Squared errors of the gate, and the rows that they count for.

    centre: (q**alpha + g - centre)**2 over the positives, ``centre`` being their mean confidence; calibration:
    (q + g - y)**2 over all rows.

    Returns:
        (float32 ``[B]``, float32 ``[B]`` of 0 and 1).
    """
    q = tf.stop_gradient(q)
    if kind == "calibration":
        return tf.square(q + g - y), tf.ones_like(y)
    return tf.square(_power(q, alpha) + g - tf.stop_gradient(centre)), y


def moment_sums(q: Tensor, p: Tensor, positive: Tensor, alpha: float) -> Tensor:
    """The sums over a batch's positives that the normalisers need.

    Returns:
        float32 ``[4]``: sums of 1, q**alpha, q**alpha * (1 - p), 1 - p.
    """
    powered = _power(q, alpha)
    left = 1.0 - p
    columns = tf.stack([tf.ones_like(q), powered, powered * left, left], axis=1)
    return tf.stop_gradient(tf.reduce_sum(columns * positive[:, None], axis=0))


def mean_confidence(moments: Tensor) -> Tensor:
    """E+[q**alpha], scalar; 1 before the first positive."""
    return _ratio(moments[1], moments[0])


def normaliser(moments: Tensor, kind: str) -> Tensor:
    """c: the mean confidence of the positives (``mean``), E+[q**alpha (1-p)] / E+[1-p] (``gradient_mass``), or 1."""
    if kind == "none":
        return tf.ones([])
    return mean_confidence(moments) if kind == "mean" else _ratio(moments[2], moments[3])


def mean_weight(weight_moments: Tensor) -> Tensor:
    """E+[w], scalar, from the moving sums of 1 and w over the positives; 1 before the first positive."""
    return _ratio(weight_moments[1], weight_moments[0])


def calibrated_logit(s: Tensor, w: Tensor, log_kept: float = 0.0) -> Tensor:
    """s - log w + log r, float32 ``[B]``.

    With a fixed weight w, the optimum has w times the odds of the training data. These have 1 / r times the true odds,
    since a share r of the non-clicks was kept. The correction removes both factors exactly.

    Args:
        s: logit, float32 ``[B]``.
        w: weight of a click on the row, float32 ``[B]``.
        log_kept: log r.
    """
    return s - tf.math.log(w) + log_kept


def _power(q: Tensor, alpha: float) -> Tensor:
    return q if alpha == 1.0 else tf.pow(q, alpha)


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    return tf.where(below > 0, tf.maximum(above, 1e-12 * below) / tf.maximum(below, 1e-30), 1.0)
