"""Versions of what results depend on, written beside every result."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("clsd", "tensorflow", "tf-keras", "tensorflow-recommenders", "apache-beam", "pyarrow", "numpy", "protobuf")


def versions() -> dict[str, str]:
    """Package name to version; packages that are not installed are left out."""
    result = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            result[name] = version(name)
        except PackageNotFoundError:
            continue
    return result
