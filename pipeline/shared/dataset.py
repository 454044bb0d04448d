"""A data set on disk: TFRecord shards, and ``dataset.json``, which is written last."""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from clsd.features.encoded_rows import EncodedRows
from clsd.features.errors import UserError, did_you_mean
from clsd.features.paths import as_path
from clsd.features.records import first_crc32c, open_records, parse_block, read_records
from clsd.features.schema import Schema
from clsd.features.transform import Transform, vocabulary_file
from clsd.features.vocabulary import Vocabulary
from clsd.pipeline.shared.artefacts import DatasetManifest
from clsd.pipeline.shared.checksums import read_checked, require_unchanged
from clsd.pipeline.shared.files import sizes
from clsd.pipeline.shared.json_files import read_json
from clsd.pipeline.shared.loaders import read_parquet
from clsd.pipeline.shared.threads import Threads

GOLDEN_FILE, STATISTICS_FILE = "golden.parquet", "statistics.json"
#: What ``statistics.json`` holds of a feature: its most frequent values, this many, or its values at these quantiles.
STATISTICS_TOP = 100
STATISTICS_QUANTILES = (0.0, 0.01, *(i / 20 for i in range(1, 20)), 0.99, 1.0)
#: Threads that open shards: in an object store, each takes a request.
_OPENERS = Threads(16, ahead=2)
_AGAIN = "run `clsd preprocess` again with --overwrite"


@dataclass(frozen=True)
class Dataset:
    """A complete data set.

    Args:
        directory: its directory.
        manifest: content of ``dataset.json``.
        schema: its schema.
    """

    directory: Path
    manifest: dict[str, Any]
    schema: Schema

    @classmethod
    def load(cls, directory: str | Path) -> Dataset:
        """Open a data set, and check that every file exists in its full length.

        Raises:
            UserError: ``dataset.json`` is missing or has another format version, or a file is missing or truncated.
        """
        directory = as_path(directory)
        if not directory.is_dir():
            raise UserError(str(directory), "no such data set", "run `clsd preprocess` first")
        file = directory / "dataset.json"
        hint = _AGAIN if file.exists() else "preprocessing did not end; run `clsd preprocess` again"
        manifest = read_json(file, "data set", hint, DatasetManifest)
        dataset = cls(directory, manifest, Schema.model_validate(manifest["schema"]))
        dataset._check_lengths()
        return dataset

    def _entries(self) -> list[dict[str, Any]]:
        """Every file with its length and CRC-32C: shards first, then vocabularies and golden rows."""
        shards = [shard for split in self.splits for shard in self.manifest["splits"][split]["shards"]]
        return [*shards, *self.manifest["files"]]

    def _check_lengths(self) -> None:
        expected = {entry["file"]: entry["bytes"] for entry in self._entries()}
        for name, size in sizes(self.directory, list(expected)).items():
            if size is None:
                raise UserError(str(self.directory / name), "is missing", f"restore it, or {_AGAIN}")
            if size != expected[name]:
                what = f"has {size} bytes instead of {expected[name]}"
                raise UserError(str(self.directory / name), what, f"restore it, or {_AGAIN}")

    @property
    def splits(self) -> list[str]:
        """Names of the splits that have rows."""
        return list(self.manifest["splits"])

    @property
    def rows_per_block(self) -> int:
        """Rows per record."""
        return int(self.manifest["rows_per_block"])

    def rows(self, split: str) -> int:
        """Number of rows of a split; 0 if it has none."""
        return int(self.manifest["splits"].get(split, {}).get("rows", 0))

    def clicks(self, split: str) -> int:
        """Number of clicks of a split; it must have rows."""
        return int(self.manifest["splits"][split]["clicks"])

    def ctr(self, split: str) -> float:
        """CTR of a split."""
        return self.clicks(split) / self.rows(split)

    @property
    def kept_negatives(self) -> float:
        """Share of the training split's non-clicks that were kept; 1 if none were dropped."""
        return float(self.manifest.get("kept_negatives", 1.0))

    @property
    def log_ctr(self) -> float:
        """CTR of the training split in the log, before non-clicks were dropped."""
        clicks = self.clicks("train")
        return clicks / (clicks + (self.rows("train") - clicks) / self.kept_negatives)

    def files(self, split: str) -> list[str]:
        """Paths of a split's shards.

        Raises:
            UserError: the data set has no rows in that split.
        """
        if split not in self.manifest["splits"]:
            known = did_you_mean(split, self.splits)
            raise UserError(
                str(self.directory), f"has no rows in split '{split}'", f"{known}; see preprocess.split in the config"
            )
        self._require_own_shards(split)
        return [str(self.directory / shard["file"]) for shard in self.manifest["splits"][split]["shards"]]

    def _require_own_shards(self, split: str) -> None:
        """Compare the first record of each shard once: another file of the same length has records that are whole, too."""
        if split in self._compared:
            return

        def compare(shard: dict[str, Any]) -> None:
            path = self.directory / shard["file"]
            if f"{first_crc32c(str(path)):08x}" != shard["first_crc32c"]:
                what = "is another shard than the one that preprocessing wrote"
                raise UserError(str(path), what, f"restore it, or {_AGAIN}")

        deque(_OPENERS.map(compare, self.manifest["splits"][split]["shards"]), maxlen=0)
        self._compared.add(split)

    @cached_property
    def _compared(self) -> set[str]:
        return set()

    def shards(self) -> list[str]:
        """Names of the shards of all splits, relative to the data set's directory."""
        return [shard["file"] for split in self.splits for shard in self.manifest["splits"][split]["shards"]]

    def file_rows(self, split: str) -> list[int]:
        """Rows of each of a split's shards, in the order of :meth:`files`."""
        return [shard["rows"] for shard in self.manifest["splits"][split]["shards"]]

    @cached_property
    def transform(self) -> Transform:
        """The transform: what was learnt from the training split."""
        return Transform.load(self.schema, self.manifest, self._read_table)

    def vocabulary(self, name: str) -> Vocabulary:
        """The vocabulary of a feature, without the others."""
        return Vocabulary.from_table(self._read_table(vocabulary_file(name)))

    def _read_checked(self, name: str) -> bytes:
        """The content of a file that is not a shard, compared with its checksum."""
        entry = next((entry for entry in self.manifest["files"] if entry["file"] == name), None)
        if entry is None:
            raise UserError(str(self.directory / "dataset.json"), f"does not list {name}", _AGAIN)
        return read_checked(self.directory, entry, f"restore it, or {_AGAIN}")

    def _read_table(self, name: str) -> pa.Table:
        return read_parquet(self._read_checked(name), self.directory / name, f"restore it, or {_AGAIN}")

    @cached_property
    def statistics(self) -> dict[str, Any]:
        """Content of ``statistics.json``; see :func:`clsd.pipeline.preprocess.data_statistics.describe`."""
        return dict(json.loads(self._read_checked(STATISTICS_FILE)))

    def golden(self) -> pa.Table:
        """Raw test rows as in the log, with their ``_key``, for the canary."""
        return self._read_table(GOLDEN_FILE)

    def read(self, split: str, shards: int | None = None) -> EncodedRows:
        """Read all rows of a split, or of its first shards, into memory in the order on disk. Record checksums are verified."""
        parts = []
        for path in self.files(split)[:shards]:
            with open_records(path) as file:
                parts += [parse_block(self.schema, record) for record in read_records(file, path)]
        return EncodedRows.concat(parts)

    def require_small_files(self) -> None:
        """Compare every file that is not a shard with its checksum.

        Raises:
            UserError: naming the first that is missing or altered.
        """
        require_unchanged(self.directory, self.manifest["files"], f"restore it, or {_AGAIN}")

    def verify(self) -> int:
        """Read every file and compare its CRC-32C with ``dataset.json``; gives the number of files.

        Raises:
            UserError: a file is damaged; the error names it, and the record if known.
        """
        for entry in self._entries():
            path = self.directory / entry["file"]
            if ".tfrecord" in path.suffixes:
                with open_records(str(path)) as file:
                    for _ in read_records(file, str(path)):
                        pass
            require_unchanged(self.directory, [entry], f"restore it, or {_AGAIN}")
        return len(self._entries())

    def require(self, schema: Schema) -> None:
        """Refuse a config whose schema is not this data set's.

        Raises:
            UserError: a feature is missing in one of them, or differs.
        """
        if schema.digest == self.schema.digest:
            return
        where = f"data set {self.directory}"
        have = {f.name: f for f in self.schema.features}
        for feature in schema.features:
            if feature.name not in have:
                raise UserError(
                    where,
                    f"was made with other rows than the config: it has no feature '{feature.name}'",
                    f"{did_you_mean(feature.name, have)}; check --dataset, or {_AGAIN}",
                )
            if feature != have[feature.name]:
                differs = _difference(feature.model_dump(), have[feature.name].model_dump())
                raise UserError(where, f"feature '{feature.name}' differs in {differs}", _AGAIN)
        for name in [name for name in have if name not in {f.name for f in schema.features}]:
            raise UserError(
                where,
                f"was made with other rows than the config: it has a feature '{name}'",
                f"set input: false for it, check --dataset, or {_AGAIN}",
            )
        raise UserError(
            where,
            f"has other rows than the config: they differ in {_difference(schema.model_dump(), self.schema.model_dump())}",
            _AGAIN,
        )


def _difference(mine: dict[str, Any], theirs: dict[str, Any]) -> str:
    name = next(key for key in [*mine, *theirs] if mine.get(key) != theirs.get(key))
    return f"{name} ({mine.get(name)!r} in the config, {theirs.get(name)!r} in the data set)"
