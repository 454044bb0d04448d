"""Writes files and directories completely or not at all."""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import re
import shutil
import tempfile
import uuid
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, Any

from clsd.features.errors import UserError
from clsd.features.paths import is_remote
from clsd.pipeline.shared.threads import Threads

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_WRITABLE = (
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EEXIST,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
)
#: Libraries whose errors come from an object store.
_STORE_CLIENTS = ("botocore", "aiobotocore", "aiohttp", "gcsfs")
#: Marks a directory of an object store that is being published, or whose publication was killed.
UNFINISHED = ".clsd-unfinished"
#: Threads that copy and remove objects of an object store.
_TRANSFER_THREADS = Threads(16, ahead=2)
#: Lock file of the process that writes into a directory.
LOCK = ".lock"
#: Errors of TensorFlow and Arrow for a lack of memory; Arrow's is a MemoryError too.
_NO_MEMORY = ("ResourceExhaustedError", "ArrowMemoryError")
_LESS_MEMORY = "lower train.batch_size, model.embedding_dim or a feature's size, or use a machine with more"
_NO_ROOM_TEXTS = tuple(os.strerror(code) for code in _NO_ROOM)


def disk_full_error(error: BaseException, where: str) -> UserError | None:
    """The error for a full disk if ``error`` comes from one, even if an engine turned it into text; else None."""
    seen: BaseException | None = error
    while seen is not None:
        code = seen.errno if isinstance(seen, OSError) else None
        if code in _NO_ROOM or any(text in str(seen) for text in _NO_ROOM_TEXTS):
            return UserError(where, "the disk is full", "free space, then run the same command again")
        seen = seen.__cause__ or seen.__context__
    return None


def object_store_error(error: BaseException, where: str) -> UserError | None:
    """The error for an object store that refuses access or cannot be reached, if ``error`` comes from one; else None."""
    seen: BaseException | None = error
    while seen is not None:
        if type(seen).__module__.partition(".")[0] in _STORE_CLIENTS:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            hint = "check the address, and the store's endpoint and credentials (AWS_ENDPOINT_URL, AWS_PROFILE, …)"
            return UserError(where, f"the object store refuses access or cannot be reached ({reason})", hint)
        seen = seen.__cause__ or seen.__context__
    return None


def out_of_memory_error(error: BaseException) -> UserError | None:
    """The error for a lack of memory if ``error`` comes from one, even from Arrow or TensorFlow; else None."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, MemoryError) or type(seen).__name__ in _NO_MEMORY:
            reason = (str(seen).strip().splitlines() or [type(seen).__name__])[0][:200]
            return UserError("memory", f"there is not enough ({reason})", _LESS_MEMORY)
        seen = seen.__cause__ or seen.__context__
    return None


@contextmanager
def as_user_errors(where: str) -> Iterator[None]:
    """Turn a full disk, a forbidden directory or an unreachable store into a UserError that names ``where``."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        full = disk_full_error(error, where)
        if full is not None:
            raise full from error
        if unreachable := object_store_error(error, where):
            raise unreachable from error
        if isinstance(error, OSError) and error.errno in _NOT_WRITABLE:
            raise UserError(where, f"cannot be written to ({error.strerror})", "choose another path") from error
        raise


def local_path(text: str | Path) -> Path:
    """A path of this machine, for results that an object store cannot hold.

    Raises:
        UserError: the path is in an object store.
    """
    if is_remote(text):
        raise UserError(str(text), "is not a local path", "give a directory on this machine")
    return Path(text)


def remove_tree(path: Path) -> None:
    """Remove a directory and its content, if it exists."""
    if isinstance(path, Path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        deque(_TRANSFER_THREADS.map(lambda name: remove_file(path / name), files_in(path)), maxlen=0)


def remove_file(path: Path) -> None:
    """Remove a file, if it exists."""
    if isinstance(path, Path):
        path.unlink(missing_ok=True)
    else:  # the path's own method would treat the name as a pattern
        with suppress(FileNotFoundError):
            path.fs.rm_file(path.path)


def files_in(directory: Path) -> list[str]:
    """Names of all files under a directory, relative to it and sorted."""
    if isinstance(directory, Path):
        return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
    # Not with a glob: an object's name may contain a glob's special characters.
    return sorted(name.removeprefix(directory.path).lstrip("/") for name in directory.fs.find(directory.path))


def copy_file(source: Path, target: Path) -> None:
    """Copy a file; source and target may be local or remote."""
    with source.open("rb") as reader, target.open("wb") as writer:
        shutil.copyfileobj(reader, writer)


def sizes(directory: Path, names: list[str]) -> dict[str, int | None]:
    """Size in bytes of each named file under a directory, None for an absent file. An object store is listed only once."""
    if isinstance(directory, Path):
        return {name: path.stat().st_size if (path := directory / name).exists() else None for name in names}
    result = directory.fs.find(directory.path, detail=True)
    return {name: result[key]["size"] if (key := f"{directory.path}/{name}") in result else None for name in names}


def _is_empty(target: Path) -> bool:
    return target.is_dir() and not any(True for _ in target.iterdir())


def refuse_foreign_directory(target: Path, markers: tuple[str, ...]) -> None:
    """Refuse to overwrite a directory that has none of clsd's marker files.

    Raises:
        UserError: the target is a file, or holds something else.
    """
    if (
        target.exists()
        and not _is_empty(target)
        and not any((target / marker).is_file() for marker in (*markers, UNFINISHED) if marker)
    ):
        raise UserError(
            str(target), "holds something that clsd did not make", "choose another path, or empty it yourself"
        )


def make_directory(path: Path) -> None:
    """Create a directory and its parents; an object store has no directories.

    Raises:
        UserError: it cannot be created.
    """
    if is_remote(path):
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_full_error(error, str(path)) or UserError(
            str(path), f"cannot be created ({error.strerror})", "choose another path"
        ) from error


@contextmanager
def atomic_directory(
    target: Path,
    *,
    marker: str = "",
    done: str = "",
    overwrite: bool = False,
    shared: bool = False,
    sole: bool = False,
) -> Iterator[Path]:
    """A directory that appears under its name only if the block succeeds.

    Yields a directory to write into. At the end it replaces the target: on this machine by one rename; in an object store by
    copies, with ``marker`` last. After an error the target is unchanged, with one exception: an error during the copies
    leaves a target without its marker, which may be overwritten.

    Args:
        target: the directory.
        marker: file without which such a directory is not valid; only directories with it are overwritten.
        done: file that follows the marker in an object store.
        overwrite: whether an existing target is replaced.
        shared: whether other machines write into it too. If not, content for an object store is first written on this machine.
        sole: whether to hold a lock beside the target meanwhile, and to remove what a killed process left beside it. Only on this
            machine's file systems.

    Raises:
        UserError: the target exists and ``overwrite`` is false, another process makes it, the disk is full, or writing is not
            permitted.
    """
    with as_user_errors(str(target)), sole_writer(target) if sole else nullcontext():
        if target.exists() and not _is_empty(target):
            if not overwrite:
                raise UserError(str(target), "exists already", "choose another path, or pass --overwrite")
            refuse_foreign_directory(target, (marker,))
        if is_remote(target) and not shared:
            temporary = Path(tempfile.mkdtemp(prefix=f"{target.name}-"))
        else:
            temporary = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.partial"
        try:
            make_directory(temporary)
            yield temporary
            if is_remote(target):
                _publish_objects(temporary, target, [name for name in (marker, done) if name])
            else:
                _publish(temporary, target)
        finally:
            remove_tree(temporary)


@contextmanager
def sole_writer(target: Path) -> Iterator[None]:
    """Hold the lock beside a directory that is made anew, and remove the temporary directories of killed processes.

    Raises:
        UserError: another process holds the lock.
    """
    if is_remote(target):
        yield
        return
    make_directory(target.parent)
    path = target.parent / f".{target.name}{LOCK}"
    with path.open("a") as file:
        _lock(file, target)
        if not path.exists() or path.stat().st_ino != os.fstat(file.fileno()).st_ino:
            raise _written_elsewhere(target)  # its holder has just removed it, and perhaps another process made it anew
        for left in target.parent.glob(f".{glob.escape(target.name)}.*"):
            if re.fullmatch(r"\.[0-9a-f]{8}\.(partial|old)", left.name.removeprefix(f".{target.name}")):
                remove_tree(left)
        try:
            yield
        finally:
            remove_file(path)


def _lock(file: IO[str], directory: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _written_elsewhere(directory) from None
    except OSError:
        pass  # a file system without locks


def _written_elsewhere(directory: Path) -> UserError:
    return UserError(
        str(directory), "another process is writing there", "wait for it, or choose another --out or --runs"
    )


@contextmanager
def directory_lock(directory: Path) -> Iterator[None]:
    """Hold the lock of a directory on this machine while the block runs.

    The directory is created if needed, and removed again if the block wrote nothing.

    Raises:
        UserError: another process holds the lock.
    """
    if is_remote(directory):
        yield
        return
    made = not directory.exists()
    make_directory(directory)
    with (directory / LOCK).open("a") as file:
        _lock(file, directory)
        try:
            yield
        finally:
            if made and [entry.name for entry in directory.iterdir()] == [LOCK]:
                remove_tree(directory)


def clear(directory: Path) -> None:
    """Remove the content of a directory, except its lock."""
    if is_remote(directory):
        remove_tree(directory)
        return
    for entry in directory.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            remove_tree(entry)
        elif entry.name != LOCK:
            remove_file(entry)


def remove_unfinished(directory: Path) -> None:
    """Remove temporary directories of :func:`atomic_directory` that killed processes left in a directory on this machine."""
    for name in ("*.partial", "*.old") if directory.is_dir() and not is_remote(directory) else ():
        for left in directory.glob(f".{name}"):
            remove_tree(left)


def _publish(temporary: Path, target: Path) -> None:
    if not target.exists():
        temporary.rename(target)
        return
    old = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.old"
    target.rename(old)
    temporary.rename(target)
    remove_tree(old)


def _publish_objects(temporary: Path, target: Path, last: list[str]) -> None:
    """Replace objects. The ``last`` files are removed first and written last, so a reader never sees a mixture as complete."""
    (target / UNFINISHED).write_bytes(b"")  # marks an unfinished directory as clsd's
    for name in reversed(last):
        remove_file(target / name)
    for name in files_in(target):
        if name != UNFINISHED:
            remove_file(target / name)
    files = files_in(temporary)
    for names in ([name for name in files if name not in last], *([name] for name in last if name in files)):
        deque(_TRANSFER_THREADS.map(lambda name: _publish_object(temporary / name, target / name), names), maxlen=0)
    remove_file(target / UNFINISHED)


def _publish_object(source: Any, target: Any) -> None:
    if isinstance(source, Path):
        target.fs.put_file(str(source), target.path)
    else:
        target.fs.cp_file(source.path, target.path)  # within the store


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears under its name only when it is complete.

    Objects are complete or absent anyway; a local file is written under a temporary name and then renamed.
    """
    temporary = path if is_remote(path) else path.with_name(f".{uuid.uuid4().hex}.partial")
    try:
        file = temporary.open("wb")
        try:
            yield file
        except BaseException:
            if hasattr(file, "discard"):  # closing it would publish half an object
                file.discard()
            else:
                file.close()
            raise
        file.close()
        if temporary != path:
            temporary.replace(path)
    finally:
        if temporary != path:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file completely or not at all."""
    with as_user_errors(str(path)), atomic_file(path) as file:
        file.write(text.encode())
