from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from clsd.features.errors import UserError
from clsd.features.schema import Schema
from clsd.pipeline.shared.dataset import Dataset
from clsd.pipeline.shared.json_files import read_json, write_json
from clsd.pipeline.training.train import train


@pytest.fixture
def copy(small_dataset: Dataset, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_dataset.directory, tmp_path / "dataset"))


def _shard(directory: Path) -> Path:
    return sorted((directory / "train").glob("*.tfrecord"))[0]


def test_a_directory_without_its_manifest_is_no_data_set(copy: Path) -> None:
    (copy / "dataset.json").unlink()
    with pytest.raises(UserError, match=r"is not a data set: it has no dataset.json; preprocessing did not end"):
        Dataset.load(copy)
    with pytest.raises(UserError, match="no such data set"):
        Dataset.load(copy / "none")


def test_a_truncated_or_missing_shard_is_named_before_anything_is_read(copy: Path) -> None:
    shard = _shard(copy)
    shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(UserError, match=rf"{shard.name}: has \d+ bytes instead of \d+"):
        Dataset.load(copy)
    shard.unlink()
    with pytest.raises(UserError, match=rf"{shard.name}: is missing"):
        Dataset.load(copy)


@pytest.mark.parametrize("place", [3, 10, 500, -2])
def test_a_flipped_bit_is_found_by_verify_and_named_by_training(
    copy: Path, small_config: Any, place: int, tmp_path: Path
) -> None:
    shard = _shard(copy)
    data = bytearray(shard.read_bytes())
    data[place] ^= 4
    shard.write_bytes(data)
    dataset = Dataset.load(copy)
    with pytest.raises(UserError, match=rf"{shard.name}: record \d+ is damaged"):
        dataset.verify()
    with pytest.raises(UserError, match=rf"{shard.name}: record \d+ is damaged"):
        train(small_config, dataset, tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_shard_of_another_data_set_is_found_by_its_checksum(copy: Path) -> None:
    first, second = sorted((copy / "train").glob("*.tfrecord"))[:2]
    manifest = read_json(copy / "dataset.json", "data set", "")
    shutil.copy(second, first)
    manifest["splits"]["train"]["shards"][0]["bytes"] = first.stat().st_size
    write_json(copy / "dataset.json", manifest)
    with pytest.raises(UserError, match="is not the file that clsd wrote"):
        Dataset.load(copy).verify()


def test_a_whole_data_set_verifies(small_dataset: Dataset) -> None:
    shards = sum(len(small_dataset.files(split)) for split in small_dataset.splits)
    assert small_dataset.verify() == shards + len(small_dataset.transform.vocabularies) + 2  # golden rows, statistics


def test_another_format_version_is_refused(copy: Path) -> None:
    manifest = json.loads((copy / "dataset.json").read_text())
    (copy / "dataset.json").write_text(json.dumps({**manifest, "format_version": 99}))
    with pytest.raises(
        UserError, match=r"dataset.json: format_version: is not 1 .found 99.; run `clsd preprocess` again"
    ):
        Dataset.load(copy)


def test_a_split_without_rows_is_said(small_dataset: Dataset) -> None:
    with pytest.raises(UserError, match="has no rows in split 'tests'; did you mean 'test'"):
        small_dataset.files("tests")


def _change(schema: Schema, change: Any) -> Schema:
    raw = schema.model_dump()
    change(raw)
    return Schema.model_validate(raw)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["features"].append({"name": "extra", "kind": "numeric"}), "it has no feature 'extra'"),
        (lambda r: r["features"].pop(5), "it has a feature 'position'"),
        (lambda r: r["features"][1].update(min_count=9), "feature 'item_id' differs in min_count (9 in the config, 2"),
        (lambda r: r.update(groups=["age_band"]), "differ in groups"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_with_the_difference(
    small_dataset: Dataset, change: Any, message: str
) -> None:
    with pytest.raises(UserError) as error:
        small_dataset.require(_change(small_dataset.schema, change))
    assert message in str(error.value)
    small_dataset.require(_change(small_dataset.schema, lambda r: None))


def test_a_damaged_vocabulary_or_manifest_is_named(copy: Path) -> None:
    vocabulary = copy / "vocabularies" / "item_id.parquet"
    data = bytearray(vocabulary.read_bytes())
    data[len(data) // 2] ^= 1
    vocabulary.write_bytes(data)
    with pytest.raises(UserError, match=r"item_id.parquet: is not the file that clsd wrote"):
        Dataset.load(copy).verify()
    vocabulary.unlink()
    with pytest.raises(UserError, match=r"item_id.parquet: is missing"):
        Dataset.load(copy)
    (copy / "dataset.json").write_text('{"format_version": 1}')
    with pytest.raises(UserError, match=r"dataset.json: has no checksum"):
        Dataset.load(copy)
