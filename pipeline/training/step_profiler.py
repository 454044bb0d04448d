"""TensorFlow's profiler around some calls of the training step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clsd.features.tf_runtime import tf

#: Calls that are not profiled: they build and warm what the step needs.
_WARMING = 2


class StepProfiler:
    """Traces some calls of the step by TensorFlow's profiler, after two that build and warm what they need.

    Args:
        out: directory of the run; the trace goes where TensorBoard looks.
        calls: how many; 0 for none.
    """

    def __init__(self, out: Path, calls: int) -> None:
        self._target, self._calls, self._seen, self._on = str(out / "tensorboard"), calls, 0, False

    @contextmanager
    def call(self) -> Iterator[None]:
        """Around each call."""
        if self._calls and self._seen == _WARMING:
            tf.profiler.experimental.start(self._target)
            self._on = True
        yield
        self._seen += 1
        if self._seen == _WARMING + self._calls:
            self.close()

    def close(self) -> None:
        """Write the trace, if one is running."""
        if self._on:
            tf.profiler.experimental.stop()
        self._on = False
