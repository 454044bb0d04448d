"""Where files lie: on this machine, or in an object store, by one kind of path.

An address such as ``s3://bucket/runs`` becomes a ``universal_pathlib`` path, which has pathlib's methods over fsspec, so what
reads and writes need not know which of the two it has. Endpoint and credentials come from the usual environment
(``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID``, ``AWS_REGION``, a profile, an instance's role).
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

from clsd.features.errors import UserError

_LOCAL = "file://"


def is_remote(path: str | Path) -> bool:
    """Whether it is an address of an object store rather than a path of this machine."""
    return "://" in str(path) and not str(path).startswith(_LOCAL)


def as_path(path: str | Path) -> Path:
    """The path of a local file or of an object.

    Raises:
        UserError: nothing is installed that reaches such a store.
    """
    if not is_remote(path):
        return Path(str(path).removeprefix(_LOCAL))
    try:
        from upath import UPath

        # Without a cache of listings: other processes write what a kept listing would not show.
        result = UPath(str(path), use_listings_cache=False)
        _ = result.fs  # imports the client
    except (ImportError, ValueError) as error:
        raise UserError(
            str(path), f"cannot be reached ({error})", "pip install 'clsd[s3]' for s3://, gcsfs for gs://"
        ) from None
    return cast(Path, result)


def address(path: Path) -> str:
    """The path as a text that means the same in every process, whatever its directory."""
    return str(path) if is_remote(path) else str(path.resolve())
