"""Local clusters for tests of several processes."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from contextlib import ExitStack

import pytest


@pytest.fixture(scope="session")
def clusters() -> Callable[[int], list[str]]:
    """Gives ``TF_CONFIG`` of each of so many local workers, at ports that were free a moment ago."""
    return _clusters


def _clusters(many: int) -> list[str]:
    with ExitStack() as free:
        sockets = [free.enter_context(socket.socket()) for _ in range(many)]
        for one in sockets:
            one.bind(("localhost", 0))
        cluster = {"worker": [f"localhost:{one.getsockname()[1]}" for one in sockets]}
    return [json.dumps({"cluster": cluster, "task": {"type": "worker", "index": n}}) for n in range(many)]
