"""The cheap calibration: estimates the logarithm of the weight from one forward pass, without the teacher."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from clsd.features.tf_runtime import Tensor, tf


class Calibrator(NamedTuple):
    """log w = b0 + b1 s + b2 g approximately, clipped to [low, high], the range that was seen.

    Args:
        intercept, of_logit, of_correction: b0, b1, b2.
        low, high: bounds of log w.

    >>> s, g = np.array([-2.0, 0.0, 2.0]), np.zeros(3)
    >>> Calibrator.fit(s, g, np.exp(0.5 * s)).of_logit
    0.5
    """

    intercept: float
    of_logit: float
    of_correction: float
    low: float
    high: float

    @classmethod
    def fit(cls, logit: Tensor, correction: Tensor, weight: Tensor) -> Calibrator | None:
        """Fit log w on s and g by least squares, over the rows of the validation split; labels are not used.

        Args:
            logit, correction, weight: s, g and w of each row, float32 ``[n]``.

        Returns:
            None for fewer than three rows, or if a value is not finite.
        """
        s, g, target = (np.asarray(x, np.float64) for x in (logit, correction, np.log(weight)))
        if len(s) < 3 or not all(np.isfinite(x).all() for x in (s, g, target)):
            return None
        design = np.stack([np.ones_like(s), s, g], axis=1)
        # lstsq gives the smallest solution: without a gate g is 0 everywhere, and so is its coefficient.
        b0, b1, b2 = np.linalg.lstsq(design, target, rcond=None)[0]
        return cls(float(b0), float(b1), float(b2), float(target.min()), float(target.max()))

    def log_weight(self, logit: Tensor, correction: Tensor) -> Tensor:
        """log w of rows, float32 ``[B]``."""
        result = self.intercept + self.of_logit * logit + self.of_correction * correction
        return tf.clip_by_value(result, self.low, self.high)
