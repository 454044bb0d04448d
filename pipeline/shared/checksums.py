"""Checksums of the files that clsd writes, and their comparison when a file is used.

A JSON file holds the checksum of its own content, under the key ``crc32c``. Other files are listed, with their checksums, in the
JSON file that is written after them. So a flipped bit is noticed before its value is used.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import google_crc32c

from clsd.features.errors import UserError

#: The key of a JSON file's checksum, and of a listed file's.
CHECKSUM = "crc32c"
_BLOCK_BYTES = 1 << 20
_ALTERED = "is not the file that clsd wrote: its checksum differs"


def with_checksum(content: dict[str, Any]) -> dict[str, Any]:
    """The content of a JSON file, with its checksum as the last key.

    >>> with_checksum({"rows": 3})
    {'rows': 3, 'crc32c': '535ec11c'}
    """
    return {**content, CHECKSUM: _checksum_of(content)}


def without_checksum(content: Any, path: Path, hint: str) -> dict[str, Any]:
    """The content of a JSON file that :func:`with_checksum` made, checked.

    Raises:
        UserError: the content has no checksum, or another one.
    """
    if not isinstance(content, dict):
        raise UserError(str(path), "is not the file that clsd wrote: it holds no JSON object", hint)
    kept = {key: value for key, value in content.items() if key != CHECKSUM}
    if CHECKSUM not in content:
        raise UserError(str(path), "has no checksum: an earlier version of clsd wrote it, or it was edited", hint)
    if content[CHECKSUM] != _checksum_of(kept):
        raise UserError(str(path), _ALTERED, hint)
    return kept


def describe_file(directory: Path, name: str) -> dict[str, Any]:
    """A file's name, length and CRC-32C, as ``dataset.json`` and others list it."""
    crc = size = 0
    with (directory / name).open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            crc, size = google_crc32c.extend(crc, block), size + len(block)
    return {"file": name, "bytes": size, CHECKSUM: f"{crc:08x}"}


def read_checked(directory: Path, entry: dict[str, Any], hint: str) -> bytes:
    """The content of a listed file. The bytes that are returned are the ones that were checked.

    Raises:
        UserError: the file cannot be read, or is not the one that was listed.
    """
    path = directory / entry["file"]
    try:
        content = bytes(path.read_bytes())
    except OSError as error:
        raise _unreadable(path, error, hint) from None
    if len(content) != entry["bytes"] or f"{google_crc32c.value(content):08x}" != entry[CHECKSUM]:
        raise UserError(str(path), _ALTERED, hint)
    return content


def require_unchanged(directory: Path, entries: Iterable[dict[str, Any]], hint: str) -> None:
    """Compare listed files with their checksums.

    Raises:
        UserError: naming the first file that is missing or altered.
    """
    for entry in entries:
        path = directory / entry["file"]
        try:
            unchanged = describe_file(directory, entry["file"]).items() <= entry.items()
        except OSError as error:
            raise _unreadable(path, error, hint) from None
        if not unchanged:
            raise UserError(str(path), _ALTERED, hint)


def _unreadable(path: Path, error: OSError, hint: str) -> UserError:
    if isinstance(error, FileNotFoundError):
        return UserError(str(path), "is missing", hint)
    return UserError(str(path), f"cannot be read ({error.strerror or type(error).__name__})", hint)


def _checksum_of(content: dict[str, Any]) -> str:
    # Of the canonical text: a person may reformat the file. Keys are text in JSON, so the content is read back first.
    canonical = json.dumps(json.loads(json.dumps(content)), sort_keys=True, separators=(",", ":"))
    return f"{google_crc32c.value(canonical.encode()):08x}"
