"""Versions of the packages that results depend on; they are written beside every result."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("clsd", "tensorflow", "tf-keras", "tensorflow-recommenders", "apache-beam", "pyarrow", "numpy", "protobuf")


def versions() -> dict[str, str]:
    """Versions by package; packages that are not installed are omitted."""
    result = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            result[name] = version(name)
        except PackageNotFoundError:
            continue
    return result
