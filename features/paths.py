"""Paths of this machine and of object stores, by one interface.

An address such as ``s3://bucket/runs`` becomes a ``universal_pathlib`` path, which has pathlib's methods over fsspec. So
readers and writers need not know which of the two they have. Endpoint and credentials come from the usual environment
(``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID``, ``AWS_REGION``, a profile, an instance's role).
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

from clsd.features.errors import UserError

_LOCAL = "file://"


def is_remote(path: str | Path) -> bool:
    """Whether a path is in an object store."""
    return "://" in str(path) and not str(path).startswith(_LOCAL)


def as_path(path: str | Path) -> Path:
    """A path object for a local path or an address.

    Raises:
        UserError: no client for this kind of store is installed.
    """
    if "\0" in str(path):
        raise UserError(str(path), "is not a path: it holds a NUL", "correct it")
    if not is_remote(path):
        return Path(str(path).removeprefix(_LOCAL))
    try:
        from upath import UPath

        # No cache of listings: it would hide what other processes write.
        result = UPath(str(path), use_listings_cache=False)
        _ = result.fs  # imports the client
    except (ImportError, ValueError) as error:
        raise UserError(
            str(path), f"cannot be reached ({error})", "pip install 'clsd[s3]' for s3://, gcsfs for gs://"
        ) from None
    return cast(Path, result)


def address(path: Path) -> str:
    """The path as an absolute path or address, valid in every process."""
    return str(path) if is_remote(path) else str(path.resolve())
