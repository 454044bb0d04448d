"""Imports TensorFlow so that a process short of memory says so, and ends when it is asked to.

The native libraries that come with TensorFlow crash, or wait for memory for ever, where they get none. They hold Python's lock
meanwhile, so that no handler of Python's hears a signal.
"""

from __future__ import annotations

import os
import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from clsd.features.errors import UserError

#: Address space that training a small model was seen to need, in GiB, and what each core's threads add.
_LEAST_GIB, _GIB_PER_CORE = 3.9, 0.05


@contextmanager
def import_interruptibly() -> Iterator[None]:
    """End the process at once on SIGTERM while the block imports native libraries.

    Raises:
        UserError: the limit of the process's address space is too low for TensorFlow.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    least = _LEAST_GIB + _GIB_PER_CORE * (os.cpu_count() or 1)
    if limit != resource.RLIM_INFINITY and limit < least * 2**30:
        what = f"is limited to {limit / 2**30:.1f} GiB, and TensorFlow needs {least:.1f}"
        raise UserError("the address space of this process", what, "raise it with ulimit -v")
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if previous is None else previous)
