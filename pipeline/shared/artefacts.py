"""The keys of the JSON files that describe a data set, a training run and an exported version."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator, model_validator

from clsd.features.schema import Schema, Strict

#: Version of the data set's files; a data set of another version is refused.
FORMAT_VERSION = 1


class ListedFile(Strict):
    """A file with its length in bytes and its CRC-32C, 8 hex digits."""

    file: str
    bytes: int
    crc32c: str


class Shard(ListedFile):
    """A shard of a split; ``first_crc32c`` is the CRC-32C of its first record's data."""

    rows: int = Field(ge=1)
    clicks: int = Field(ge=0)
    blocks: int = Field(ge=1)
    first_crc32c: str


class Split(Strict):
    """A split that has rows; ``quality`` counts missing and unknown values by feature."""

    rows: int = Field(ge=1)
    clicks: int = Field(ge=0)
    shards: list[Shard] = Field(min_length=1)
    quality: dict[str, dict[str, int]]


class VocabularyFile(Strict):
    """A vocabulary's file and its number of values."""

    file: str
    size: int


class Scale(Strict):
    """What a numeric feature learnt; see :class:`clsd.features.transform.NumericState`."""

    mean: float
    sd: float
    boundaries: list[float]


class DatasetManifest(Strict):
    """The content of ``dataset.json``."""

    format_version: int
    name: str
    fingerprint: str
    base: dict[str, str] | None
    schema_digest: str
    schema_: Schema = Field(alias="schema")
    preprocess: dict[str, Any]
    kept_negatives: float = Field(gt=0, le=1)
    seed: int
    sources: list[str]
    sources_modified: list[float]
    columns_not_read: list[str]
    rows: dict[str, int]
    dead_letters: dict[str, Any]
    rows_per_block: int = Field(ge=1)
    splits: dict[str, Split]
    files: list[ListedFile]
    vocabularies: dict[str, VocabularyFile]
    numerics: dict[str, Scale]
    versions: dict[str, str]

    @model_validator(mode="after")
    def _has_its_parts(self) -> DatasetManifest:
        if "train" not in self.splits:
            raise ValueError("splits: has no training split")
        listed = {file.file for file in self.files}
        for vocabulary in self.vocabularies.values():
            if vocabulary.file not in listed:
                raise ValueError(f"files: does not list {vocabulary.file}")
        return self

    @field_validator("format_version")
    @classmethod
    def _is_ours(cls, version: int) -> int:
        if version != FORMAT_VERSION:
            raise ValueError(f"is not {FORMAT_VERSION}; run `clsd preprocess` again with --overwrite")
        return version


class RunSummary(Strict):
    """The content of ``run.json``."""

    fingerprint: str
    dataset_fingerprint: str
    epochs: int
    best_epoch: int
    stopped: str
    collapsed: str
    warmup_steps: int
    seconds_per_step: float | None
    history: list[dict[str, Any]]
    base: dict[str, str] | None
    files: list[ListedFile]

    @field_validator("files")
    @classmethod
    def _has_its_parts(cls, files: list[ListedFile]) -> list[ListedFile]:
        return _with(files, "config.yaml", "best/weights.index")


class ExportMetadata(Strict):
    """The content of a version's ``assets.extra/clsd.json``; ``config`` is YAML."""

    name: str
    version: int
    fingerprint: str
    dataset_fingerprint: str
    columns: dict[str, str]
    config: str
    export: dict[str, Any]
    metrics: dict[str, float] | None
    variables: dict[str, str]
    versions: dict[str, str]
    files: list[ListedFile]

    @field_validator("files")
    @classmethod
    def _has_its_parts(cls, files: list[ListedFile]) -> list[ListedFile]:
        return _with(files, "saved_model.pb", "variables/variables.index", "assets.extra/golden.json")


def _with(files: list[ListedFile], *names: str) -> list[ListedFile]:
    for name in names:
        if name not in {file.file for file in files}:
            raise ValueError(f"does not list {name}")
    return files
