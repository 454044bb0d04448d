"""Writing whole files and whole directories, or nothing."""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from features.errors import UserError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)
_NO_ROOM_TEXTS = tuple(os.strerror(code) for code in _NO_ROOM)


def no_room(error: BaseException, where: str) -> UserError | None:
    """The error for a full disk, if that is what ``error`` comes from; also where an engine wrapped it into text."""
    seen: BaseException | None = error
    while seen is not None:
        code = seen.errno if isinstance(seen, OSError) else None
        if code in _NO_ROOM or any(text in str(seen) for text in _NO_ROOM_TEXTS):
            return UserError(where, "the disk is full", "make room, then run the same command again")
        seen = seen.__cause__ or seen.__context__
    return None


@contextmanager
def clear_errors(where: str) -> Iterator[None]:
    """Turn a full disk or a forbidden directory into a UserError that names ``where``."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        full = no_room(error, where)
        if full is not None:
            raise full from error
        if isinstance(error, OSError) and error.errno in _NO_PLACE:
            raise UserError(where, f"cannot be written to ({error.strerror})", "choose another place") from error
        raise


def is_remote(path: str | Path) -> bool:
    """Whether it is an address of an object store rather than a path of this machine."""
    return "://" in str(path)


def local_path(text: str | Path) -> Path:
    """A place to write to.

    Raises:
        UserError: it is an address of an object store, which clsd reads logs from and does not write to yet.
    """
    if is_remote(text):
        raise UserError(str(text), "is no local path", "write to a local directory and copy it from there")
    return Path(text)


def _is_empty(target: Path) -> bool:
    return target.is_dir() and not any(target.iterdir())


def require_ours(target: Path, markers: tuple[str, ...]) -> None:
    """Refuse to overwrite a directory that holds none of the files which say that clsd made it.

    Raises:
        UserError: it is a file, or holds something else.
    """
    if (
        target.exists()
        and not _is_empty(target)
        and not any((target / marker).is_file() for marker in markers if marker)
    ):
        raise UserError(
            str(target), "holds something that clsd did not make", "choose another place, or empty it yourself"
        )


def make_directory(path: Path) -> None:
    """Make a directory and those above it.

    Raises:
        UserError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise no_room(error, str(path)) or UserError(
            str(path), f"cannot be made ({error.strerror})", "choose another place"
        ) from error


@contextmanager
def whole_directory(target: Path, *, marker: str = "", overwrite: bool = False) -> Iterator[Path]:
    """A directory that appears under its name only when the block ends well.

    Yields a directory beside the target; at the end it takes the target's place by one rename. On any error it is removed
    and the target is what it was.

    Args:
        target: the directory.
        marker: a file that a directory of this kind has; only such a one is ever overwritten.
        overwrite: whether one that exists is replaced.

    Raises:
        UserError: the target exists and is not to be overwritten, the disk is full, or writing is not permitted.
    """
    if target.exists() and not _is_empty(target):
        if not overwrite:
            raise UserError(str(target), "exists already", "choose another place, or pass --overwrite")
        require_ours(target, (marker,))
    aside = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.partial"
    with clear_errors(str(target)):
        try:
            make_directory(aside)
            yield aside
            if target.exists():
                old = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.old"
                target.rename(old)
                aside.rename(target)
                shutil.rmtree(old, ignore_errors=True)
            else:
                aside.rename(target)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file aside and put it in place by one rename."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    with clear_errors(str(path)):
        try:
            aside.write_text(text, encoding="utf-8")
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON a person can read, whole or not at all; NaN is refused, absent is absent."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, what: str, mend: str) -> Any:
    """Read a JSON file of ours.

    Raises:
        UserError: it is not there or not whole; ``what`` says what it should be.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(str(path.parent), f"is no {what}: it has no {path.name}", mend) from None
    except (OSError, ValueError) as error:
        raise UserError(str(path), f"cannot be read ({error})", mend) from None
