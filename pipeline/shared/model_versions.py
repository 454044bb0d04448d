"""Versions of an exported model in the directory that a model server watches: a folder a version, named by its number.

A server loads the folder of the largest number, and looks again every second or so. So a version is never changed where it
stands: it comes by one rename and goes by one. In an object store, which has none, ``saved_model.pb`` comes last: a server that
looks before that finds a version that it cannot load, goes on serving the one it has, and tries again.
"""

from __future__ import annotations

import uuid
from pathlib import Path

from clsd.features.errors import UserError, did_you_mean
from clsd.features.paths import is_remote
from clsd.pipeline.shared.config import Config
from clsd.pipeline.shared.config_file import parse_yaml
from clsd.pipeline.shared.files import (
    UNFINISHED,
    clear_errors,
    copy_file,
    files_in,
    read_json,
    remove_file,
    remove_tree,
    remove_unfinished,
)

#: Beside the graph in every exported version: what it is from; raw rows with their scores; requests to warm a server up with.
PROVENANCE_FILE = "assets.extra/clsd.json"
GOLDEN_FILE = "assets.extra/golden.json"
WARMUP_REQUESTS_FILE = "assets.extra/tf_serving_warmup_requests"
#: Without it there is no model; of what is published it comes last but one.
MODEL_FILE = "saved_model.pb"
#: Says that a version is whole, to whoever copies it from an object store.
DONE_FILE = "_SUCCESS"
#: How the name of a version begins that was taken out of service.
WITHDRAWN = "withdrawn-"


def versions_in(directory: Path) -> list[Path]:
    """The whole versions in a directory, as a model server sees them, oldest first."""
    there = directory.iterdir() if directory.is_dir() else iter(())
    return sorted((p for p in there if p.name.isdigit() and (p / MODEL_FILE).exists()), key=lambda p: int(p.name))


def newest_version(directory: Path) -> Path:
    """The version that a model server would load from a directory, or the directory itself if it is a SavedModel.

    Raises:
        UserError: there is neither.
    """
    if (directory / MODEL_FILE).exists():
        return directory
    result = versions_in(directory)
    if not result:
        raise UserError(str(directory), "holds no exported model", "run `clsd export` first")
    return result[-1]


def exported_config(model: Path, overrides: list[str] | None = None) -> Config:
    """The config of the run that an exported version is from.

    Raises:
        UserError: the version does not say, or an override is none.
    """
    metadata = read_json(model / PROVENANCE_FILE, "model that clsd exported", "give --config")
    return parse_yaml(metadata["config"], str(model / PROVENANCE_FILE), overrides)


def keep_newest(directory: Path, num_versions: int) -> list[Path]:
    """Remove all versions but the newest ``num_versions``; gives those that went."""
    old = versions_in(directory)[:-num_versions]
    with clear_errors(str(directory)):
        for version in old:
            _move_away(version, None)
    return old


def remove_unpublished(directory: Path) -> None:
    """Remove what exports that were killed left: hidden folders; in an object store, versions without their last files."""
    remove_unfinished(directory)
    for entry in directory.iterdir() if is_remote(directory) and directory.is_dir() else ():
        if entry.name.isdigit() and (entry / UNFINISHED).exists():
            remove_tree(entry)


def withdraw(directory: Path, to: int | None = None) -> tuple[Path, list[Path]]:
    """Bring an earlier version back into service, by taking the newer ones out: ``7`` becomes ``withdrawn-7``.

    Args:
        directory: that the model server watches.
        to: the version to serve; the one before the newest if None.

    Returns:
        the version that is served now, and where the others are, the oldest first, in which order they went: a server that looks
        in between still serves the newest.

    Raises:
        UserError: there is no such version, or none before the newest, or nothing to withdraw.
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
    with clear_errors(str(directory)):
        for version in result[names.index(str(to)) + 1 :]:
            target = directory / f"{WITHDRAWN}{version.name}"
            remove_tree(target)  # of an earlier time
            _move_away(version, target)
            gone.append(target)
    if not gone:
        raise UserError(str(directory), f"serves {to} already", "give an earlier --to")
    return directory / str(to), gone


def _move_away(version: Path, target: Path | None) -> None:
    """Take a version from the server's sight at once; to ``target``, or to nowhere."""
    if not is_remote(version):
        aside = target or version.with_name(f".{version.name}.{uuid.uuid4().hex[:8]}.old")
        version.rename(aside)
        if target is None:
            remove_tree(aside)
        return
    if target is not None:
        for name in files_in(version):
            copy_file(version / name, target / name)
    for name in (DONE_FILE, MODEL_FILE):
        remove_file(version / name)
    remove_tree(version)
