"""Profile some calls of the training step with TensorFlow's profiler."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clsd.features.tf_runtime import tf

#: Number of first calls that are not profiled: they trace the function and warm caches.
_SKIPPED_CALLS = 2


class StepProfiler:
    """Profiles some calls of the step, after two calls that trace the function and warm caches.

    Args:
        out: directory of the run; the trace is written where TensorBoard finds it.
        calls: number of calls to profile; 0 for none.
    """

    def __init__(self, out: Path, calls: int) -> None:
        self._target, self._calls, self._seen, self._on = str(out / "tensorboard"), calls, 0, False

    @contextmanager
    def call(self) -> Iterator[None]:
        """Context of one call."""
        if self._calls and self._seen == _SKIPPED_CALLS:
            tf.profiler.experimental.start(self._target)
            self._on = True
        yield
        self._seen += 1
        if self._seen == _SKIPPED_CALLS + self._calls:
            self.close()

    def close(self) -> None:
        """Write the trace if the profiler is running."""
        if self._on:
            tf.profiler.experimental.stop()
        self._on = False
