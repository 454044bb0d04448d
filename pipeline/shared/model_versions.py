"""Exported versions in the directory that a model server watches: one folder per version, named by its number.

A server serves the largest number and polls the directory. So a version is never changed in place: it appears by one rename
and disappears by one. In an object store, ``saved_model.pb`` is uploaded last. A server that polls earlier finds a version
that it cannot load, keeps serving the current one, and tries again.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from clsd.features.errors import UserError, did_you_mean
from clsd.features.paths import is_remote
from clsd.pipeline.shared.artefacts import ExportMetadata
from clsd.pipeline.shared.checksums import require_unchanged
from clsd.pipeline.shared.config import Config
from clsd.pipeline.shared.config_file import parse_yaml
from clsd.pipeline.shared.files import (
    UNFINISHED,
    as_user_errors,
    copy_file,
    files_in,
    remove_file,
    remove_tree,
    remove_unfinished,
)
from clsd.pipeline.shared.json_files import read_json

#: Beside the graph in every version: its metadata; golden rows with their scores; warm-up requests.
PROVENANCE_FILE = "assets.extra/clsd.json"
GOLDEN_FILE = "assets.extra/golden.json"
WARMUP_REQUESTS_FILE = "assets.extra/tf_serving_warmup_requests"
#: The marker of a version; it is written last but one.
MODEL_FILE = "saved_model.pb"
#: Written last: tells whoever copies a version from an object store that it is complete.
DONE_FILE = "_SUCCESS"
#: Prefix of the name of a withdrawn version.
WITHDRAWN = "withdrawn-"


def versions_in(directory: Path) -> list[Path]:
    """The complete versions in a directory, as a model server sees them, oldest first."""
    there = directory.iterdir() if directory.is_dir() else iter(())
    return sorted((p for p in there if p.name.isdigit() and (p / MODEL_FILE).exists()), key=lambda p: int(p.name))


def newest_version(directory: Path) -> Path:
    """The version that a model server would serve from a directory; the directory itself if it is a SavedModel.

    Raises:
        UserError: the directory is neither.
    """
    if (directory / MODEL_FILE).exists():
        return directory
    result = versions_in(directory)
    if not result:
        raise UserError(str(directory), "holds no exported model", "run `clsd export` first")
    return result[-1]


def read_metadata(version: Path, hint: str) -> dict[str, Any]:
    """The metadata of an exported version; its files are not compared with their checksums.

    Raises:
        UserError: it was not exported by clsd, or its metadata are damaged.
    """
    return read_json(version / PROVENANCE_FILE, "model that clsd exported", hint, ExportMetadata)


def verified_metadata(version: Path, hint: str) -> dict[str, Any]:
    """The metadata of an exported version, after every file of it was compared with its checksum.

    Raises:
        UserError: as :func:`read_metadata`; or a file is missing or altered.
    """
    metadata = read_metadata(version, hint)
    require_unchanged(version, metadata["files"], hint)
    return metadata


def exported_config(model: Path, overrides: list[str] | None = None) -> Config:
    """The config of the run that an exported version comes from.

    Raises:
        UserError: the version has no metadata, or an override is wrong.
    """
    metadata = read_metadata(model, "give --config")
    return parse_yaml(metadata["config"], str(model / PROVENANCE_FILE), overrides)


def keep_newest(directory: Path, num_versions: int) -> list[Path]:
    """Remove all versions except the newest ``num_versions``; gives the removed ones."""
    old = versions_in(directory)[:-num_versions]
    with as_user_errors(str(directory)):
        for version in old:
            _move_away(version, None)
    return old


def remove_unpublished(directory: Path) -> None:
    """Remove what killed exports left: hidden folders; in an object store, versions without their last files."""
    remove_unfinished(directory)
    for entry in directory.iterdir() if is_remote(directory) and directory.is_dir() else ():
        if entry.name.isdigit() and (entry / UNFINISHED).exists():
            remove_tree(entry)


def withdraw(directory: Path, to: int | None = None) -> tuple[Path, list[Path]]:
    """Withdraw newer versions, so that an earlier one is served again: ``7`` becomes ``withdrawn-7``.

    Args:
        directory: the directory that the model server watches.
        to: the version to serve; by default the one before the newest.

    Returns:
        the version that is served now, and the withdrawn ones, oldest first. They are withdrawn in this order, so a server
        that polls in between still serves the newest.

    Raises:
        UserError: there is no such version, no version before the newest, or nothing to withdraw.
    """
    result = versions_in(directory)
    names = [version.name for version in result]
    if to is None:
        if len(result) < 2:
            raise UserError(str(directory), "has no version before the newest", "export one first")
        to = int(names[-2])
    if str(to) not in names:
        raise UserError(str(directory), f"has no version {to}", did_you_mean(str(to), names))
    gone = []
    with as_user_errors(str(directory)):
        for version in result[names.index(str(to)) + 1 :]:
            target = directory / f"{WITHDRAWN}{version.name}"
            remove_tree(target)  # from an earlier withdrawal
            _move_away(version, target)
            gone.append(target)
    if not gone:
        raise UserError(str(directory), f"serves {to} already", "give an earlier --to")
    return directory / str(to), gone


def _move_away(version: Path, target: Path | None) -> None:
    """Hide a version from the server at once: move it to ``target``, or remove it."""
    if not is_remote(version):
        temporary = target or version.with_name(f".{version.name}.{uuid.uuid4().hex[:8]}.old")
        version.rename(temporary)
        if target is None:
            remove_tree(temporary)
        return
    if target is not None:
        for name in files_in(version):
            copy_file(version / name, target / name)
    for name in (DONE_FILE, MODEL_FILE):
        remove_file(version / name)
    remove_tree(version)
