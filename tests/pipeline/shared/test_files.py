"""Atomic directories in an object store, with fsspec's store in memory; tests/e2e uses a real server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from clsd.features.errors import UserError
from clsd.features.paths import address, as_path, is_remote
from clsd.pipeline.shared.files import atomic_directory, remove_tree, sizes
from clsd.pipeline.shared.json_files import read_json, write_json


@pytest.fixture
def store(request: pytest.FixtureRequest) -> Path:
    root = as_path(f"memory://{request.node.name}")
    remove_tree(root)
    return root


def _names(root: Any) -> set[str]:
    return {name.removeprefix(root.path).lstrip("/") for name in root.fs.find(root.path)}


def test_places_are_told_apart(tmp_path: Path) -> None:
    assert not is_remote("runs/s3")
    assert as_path("runs") == Path("runs")
    assert address(Path("runs")) == str(Path.cwd() / "runs")
    assert address(as_path("memory://a/b")).startswith("memory://")
    with pytest.raises(UserError, match=r"nosuch://x: cannot be reached"):
        as_path("nosuch://x")


@pytest.mark.parametrize("shared", [False, True])
def test_a_directory_appears_whole_and_its_marker_last(
    store: Path, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    target: Any = store / "made"
    order: list[str] = []
    how = "cp_file" if shared else "put_file"
    real = getattr(type(target.fs), how)
    monkeypatch.setattr(type(target.fs), how, lambda self, a, b, **more: order.append(b) or real(self, a, b, **more))
    with atomic_directory(target, marker="m.json", shared=shared) as temporary:
        assert is_remote(temporary) == shared
        write_json(temporary / "m.json", {"a": 1})
        write_json(temporary / "b.json", {})
        if not shared:
            (temporary / "deep").mkdir()
        write_json(temporary / "deep" / "c.json", {})
        assert not target.exists()
    assert _names(target) == {"m.json", "b.json", "deep/c.json"}
    assert [name.rpartition("/")[2] for name in order][-1] == "m.json"
    assert len(order) == 3
    assert _names(store) == {"made/m.json", "made/b.json", "made/deep/c.json"}  # nothing is left beside it
    assert read_json(target / "m.json", "", "") == {"a": 1}
    assert sizes(target, ["m.json", "none"]) == {"m.json": len((target / "m.json").read_bytes()), "none": None}


@pytest.mark.parametrize("shared", [False, True])
def test_an_error_leaves_what_was_there(store: Path, shared: bool) -> None:
    target = store / "made"
    write_json(target / "m.json", {"old": 1})
    with (
        pytest.raises(RuntimeError, match="midway"),
        atomic_directory(target, marker="m.json", overwrite=True, shared=shared) as temporary,
    ):
        write_json(temporary / "m.json", {"new": 1})
        raise RuntimeError("midway")
    assert _names(store) == {"made/m.json"}
    assert read_json(target / "m.json", "", "") == {"old": 1}


def test_what_is_there_is_replaced_only_when_told_to(store: Path) -> None:
    target = store / "made"
    write_json(target / "m.json", {"old": 1})
    write_json(target / "gone.json", {})
    with pytest.raises(UserError, match="exists already"), atomic_directory(target, marker="m.json"):
        pass
    with pytest.raises(UserError, match="did not make"), atomic_directory(target, marker="x.json", overwrite=True):
        pass
    with atomic_directory(target, marker="m.json", overwrite=True) as temporary:
        write_json(temporary / "m.json", {"new": 1})
    assert _names(target) == {"m.json"}
    assert read_json(target / "m.json", "", "") == {"new": 1}


def test_two_writers_of_one_directory_and_what_a_killed_one_left(tmp_path: Path) -> None:
    """The second is refused while the first writes; what a killed one left is removed, and nothing of another target is."""
    target = tmp_path / "made[1]"
    killed, others = tmp_path / ".made[1].0123abcd.partial", tmp_path / ".made.0123abcd.partial"
    for left in (killed, others):
        left.mkdir()
    with atomic_directory(target, sole=True) as temporary:
        write_json(temporary / "m.json", {"a": 1})
        assert not killed.exists() and others.exists()
        with (
            pytest.raises(UserError, match=r"made\[1\]: another process is writing there; wait for it"),
            atomic_directory(target, overwrite=True, sole=True),
        ):
            pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [others.name, target.name]
    with atomic_directory(target, marker="m.json", overwrite=True, sole=True) as temporary:
        write_json(temporary / "m.json", {"a": 2})
    assert read_json(target / "m.json", "", "") == {"a": 2}
