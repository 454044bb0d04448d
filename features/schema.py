"""The schema: the only list of feature names, kinds, widths and roles.

Preprocessing, the record reader, the models and the serving signatures all read :class:`Schema`. A row of a click log is one
impression. Encoded, it is ``ids`` int32 ``[width]`` and ``values`` float32 ``[n_numeric]``. Each categorical, bucketed, bag and
sequence feature has columns of its own in ``ids``; bags and sequences are padded with 0.

Every embedding table reserves ids in this order: 0 padding, 1 missing, 2 ... 1 + ``oov_buckets`` out of vocabulary. The values
follow.
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from clsd.features.errors import did_you_mean

PADDING_ID = 0
MISSING_ID = 1
FIRST_OOV_ID = 2
#: Stands for a missing int64 where there is no null (serving signatures, tf.train.Example).
MISSING_INT = -(2**63)


class Strict(BaseModel):
    """Base of all settings classes: unknown keys and infinities are errors, and objects are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class _Feature(Strict):
    name: str = Field(
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=200, description="name of the feature, and of its serving input"
    )
    column: str = Field(default="", description="column of the log; by default the feature's name")
    optional: bool = Field(
        default=False, description="whether log files may lack the column; all its values are then missing"
    )
    input: bool = Field(
        default=True, description="whether the backbone reads the feature; false for a feature that only AdGate reads"
    )

    @property
    def source(self) -> str:
        """The log column that this feature reads."""
        return self.column or self.name


class _Categorical(_Feature):
    dtype: Literal["string", "int64"] = Field(default="string", description="type of the column in the log")
    encoding: Literal["vocabulary", "hash", "identity"] = Field(
        default="vocabulary",
        description="vocabulary: learnt from the training split; hash: `size` bins; identity: the integers 0 ... size - 1",
    )
    size: int = Field(
        default=0,
        ge=0,
        le=2_000_000_000,
        description="number of hash bins, or of integers for identity; unused for a vocabulary",
    )
    min_count: int = Field(
        default=1, ge=1, le=10**12, description="least number of training rows that a value must occur in to get an id"
    )
    max_size: int = Field(
        default=10_000_000, ge=1, le=2_000_000_000, description="largest number of values that get an id"
    )
    oov_buckets: int = Field(
        default=1, ge=1, le=1_000_000, description="number of ids among which unknown values are hashed"
    )
    share: str = Field(default="", description="feature whose vocabulary and embedding table this feature uses too")

    @model_validator(mode="after")
    def _size_fits_encoding(self) -> _Categorical:
        if self.encoding in ("hash", "identity") and self.size < 1 and not self.share:
            raise ValueError(f"'{self.name}': encoding '{self.encoding}' needs size: the number of bins")
        if self.encoding == "identity" and self.dtype != "int64":
            raise ValueError(f"'{self.name}': encoding 'identity' needs dtype: int64")
        return self


class CategoricalFeature(_Categorical):
    """One value per row, as an id."""

    kind: Literal["categorical"] = Field(description="one value per row")
    max_length: Literal[1] = 1


class _MultiValued(_Categorical):
    max_length: int = Field(ge=1, le=65_536, description="values kept per row")
    separator: str = Field(
        default="", description="separator that splits the column's text into values; empty if the log has lists"
    )


class BagFeature(_MultiValued):
    """Several values per row without order, such as genres; the first ``max_length`` are kept."""

    kind: Literal["bag"] = Field(description="several values without order")


class SequenceFeature(_MultiValued):
    """Several values per row in order, oldest first, such as a history; the **last** ``max_length`` are kept."""

    kind: Literal["sequence"] = Field(description="several values in order, oldest first")
    clicks_of: str = Field(
        default="",
        description="column, such as the item: the sequence is its values in the user's clicks strictly before the "
        "row's time; the log has no column for the sequence, but a request to the served model does",
    )

    @model_validator(mode="after")
    def _made_or_read(self) -> SequenceFeature:
        if self.clicks_of and (self.separator or self.optional):
            raise ValueError(f"'{self.name}': clicks_of always makes lists; leave out separator and optional")
        return self


class NumericFeature(_Feature):
    """A number. ``quantile`` turns it into an id; with the other transforms it stays a number, and missing becomes the mean."""

    kind: Literal["numeric"] = Field(description="a number")
    transform: Literal["standardise", "log1p", "quantile", "none"] = Field(
        default="standardise",
        description="standardise: (x - mean) / sd; log1p: log(1 + max(x, 0)), standardised; quantile: id of its bucket; none: x",
    )
    buckets: int = Field(default=16, ge=2, le=4096, description="buckets of the quantile transform")
    min: float | None = Field(default=None, description="rows with a smaller value become dead letters")
    max: float | None = Field(default=None, description="rows with a larger value become dead letters")


Feature = Annotated[CategoricalFeature | BagFeature | SequenceFeature | NumericFeature, Field(discriminator="kind")]
Categorical = CategoricalFeature | BagFeature | SequenceFeature


class Schema(Strict):
    """What a row means: its features, and the roles of other columns."""

    features: list[Feature] = Field(min_length=1, description="features, in this order")
    label: str = Field(default="click", description="column of clicks: 0 and 1, or booleans")
    user: str = Field(default="", description="column of the user; needed for GAUC and per-user splits")
    timestamp: str = Field(default="", description="column of the impression's time; needed for splits by time")
    timestamp_unit: Literal["s", "ms", "us", "ns", "iso"] = Field(
        default="s", description="unit of a numeric timestamp; iso: text such as 2026-11-22T10:00:00Z"
    )
    intensity: str = Field(
        default="",
        description="column of how much a click meant (rating, dwell time); for evaluation, never a model input",
    )
    groups: list[str] = Field(
        default=[], description="categorical features that AdGate reads, and by which reports are broken down"
    )
    passthrough: list[str] = Field(default=[], description="columns that are kept as text and otherwise unused")

    @model_validator(mode="after")
    def _names_fit(self) -> Schema:
        names = [feature.name for feature in self.features]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"feature '{twice[0]}' is listed twice")
        singles = [f.name for f in self.features if isinstance(f, CategoricalFeature)]
        for group in self.groups:
            if group not in singles:
                raise ValueError(f"groups: '{group}' is not a categorical feature; {did_you_mean(group, singles)}")
        for reader in self.categorical:
            vocabulary_source = next((f for f in self.categorical if f.name == reader.share), None)
            if reader.share and (vocabulary_source is None or vocabulary_source.share or vocabulary_source is reader):
                raise ValueError(
                    f"'{reader.name}': share: '{reader.share}' is not a feature with a vocabulary of its own"
                )
            if vocabulary_source is not None and vocabulary_source.dtype != reader.dtype:
                raise ValueError(f"'{reader.name}': dtype must be that of '{reader.share}', {vocabulary_source.dtype}")
        for made in self.histories:
            read = [f.source for f in self.features if isinstance(f, CategoricalFeature) and f.dtype == made.dtype]
            if made.clicks_of not in read:
                hint = did_you_mean(made.clicks_of, read)
                raise ValueError(
                    f"'{made.name}': clicks_of: '{made.clicks_of}' is not a column of type {made.dtype} that a feature reads; "
                    f"{hint}"
                )
            if not (self.user and self.timestamp):
                raise ValueError(f"'{made.name}': clicks_of needs user and timestamp; name their columns")
        self._check_shared_columns()
        reserved = {self.label, self.intensity} - {""}
        for feature in self.features:
            if feature.source in reserved:
                raise ValueError(
                    f"'{feature.name}' reads '{feature.source}', which is the label or the intensity: a leak"
                )
        if not any(feature.input for feature in self.features):
            raise ValueError("no feature has input: true, so the backbone would read nothing")
        return self

    def _check_shared_columns(self) -> None:
        """Refuse a column that is read in two ways: whole numbers may be ids and numbers, and nothing else may be two things."""
        ways: dict[str, dict[str, str]] = {self.user: {"ids": "the user"}} if self.user else {}
        for feature in self.features:
            if feature in self.histories:
                continue
            if isinstance(feature, NumericFeature):
                way = "numbers"
            elif isinstance(feature, CategoricalFeature) or feature.separator:
                way = "int64" if feature.dtype == "int64" and isinstance(feature, CategoricalFeature) else "text"
            else:
                way = f"lists of {feature.dtype}"
            ways.setdefault(feature.source, {})[way] = f"'{feature.name}'"
        for column, readers in ways.items():
            known = readers.keys() - ({"ids"} if readers.keys() & {"int64", "text"} else set())
            if len(known) > 1 and known != {"int64", "numbers"}:
                first, second = sorted(known)[:2]
                raise ValueError(
                    f"column '{column}' is read as {first} by {readers[first]} and as {second} by {readers[second]}; "
                    "give one of them a column of its own, or set dtype: int64 for a categorical feature beside a numeric one"
                )

    @cached_property
    def categorical(self) -> list[Categorical]:
        """Categorical, bag and sequence features, in order."""
        return [f for f in self.features if not isinstance(f, NumericFeature)]

    @cached_property
    def histories(self) -> list[SequenceFeature]:
        """Sequences that preprocessing makes from each user's clicks."""
        return [f for f in self.features if isinstance(f, SequenceFeature) and f.clicks_of]

    @cached_property
    def bucketed(self) -> list[NumericFeature]:
        """Numeric features that become ids (quantile buckets)."""
        return [f for f in self.features if isinstance(f, NumericFeature) and f.transform == "quantile"]

    @cached_property
    def numeric(self) -> list[NumericFeature]:
        """Numeric features that stay numbers, in the order of ``values``."""
        return [f for f in self.features if isinstance(f, NumericFeature) and f.transform != "quantile"]

    @cached_property
    def id_slices(self) -> dict[str, slice]:
        """Columns of ``ids`` of each categorical or bucketed feature; features with one column come first."""
        fixed = [f for f in self.categorical if isinstance(f, CategoricalFeature)]
        ragged = [f for f in self.categorical if not isinstance(f, CategoricalFeature)]
        slices, at = {}, 0
        for name, width in [(f.name, 1) for f in [*fixed, *self.bucketed]] + [(f.name, f.max_length) for f in ragged]:
            slices[name] = slice(at, at + width)
            at += width
        return slices

    @cached_property
    def ragged(self) -> list[BagFeature | SequenceFeature]:
        """Bags and sequences; they have the last columns of ``ids``."""
        return [f for f in self.categorical if not isinstance(f, CategoricalFeature)]

    @cached_property
    def fixed_width(self) -> int:
        """Number of leading columns of ``ids`` that hold exactly one id per row."""
        return sum(s.stop - s.start == 1 for n, s in self.id_slices.items() if n not in {f.name for f in self.ragged})

    @cached_property
    def width(self) -> int:
        """Number of columns of ``ids``."""
        return max((s.stop for s in self.id_slices.values()), default=0)

    def feature(self, name: str) -> CategoricalFeature | BagFeature | SequenceFeature | NumericFeature:
        """The feature of that name; a KeyError names the closest one."""
        for feature in self.features:
            if feature.name == name:
                return feature
        raise KeyError(f"no feature '{name}'; {did_you_mean(name, [f.name for f in self.features])}")

    def vocabulary_source(self, feature: Categorical) -> Categorical:
        """The feature whose vocabulary and embedding table ``feature`` uses: itself, unless it shares another's."""
        return next(f for f in self.categorical if f.name == (feature.share or feature.name))

    @cached_property
    def vocabularies(self) -> list[Categorical]:
        """Features that learn a vocabulary."""
        return [f for f in self.categorical if f.encoding == "vocabulary" and not f.share]

    @property
    def inputs(self) -> list[Feature]:
        """Features that the backbone or AdGate reads: the inputs of the served model."""
        return [f for f in self.features if f.input or f.name in self.groups]

    @property
    def single_valued(self) -> list[str]:
        """Log columns that are read only as one categorical value per row; these are dictionary-encoded."""
        single = {f.source for f in self.features if isinstance(f, CategoricalFeature)}
        others = {f.source for f in self.features if not isinstance(f, CategoricalFeature)}
        return sorted(single - others - {self.label, self.timestamp, self.intensity})

    @property
    def id_columns(self) -> list[str]:
        """Log columns whose values are ids: the categorical features' and the user's."""
        return sorted({*(f.source for f in self.categorical if f not in self.histories), self.user} - {""})

    @property
    def columns(self) -> list[str]:
        """Every log column that is read, in a stable order."""
        roles = [self.label, self.user, self.timestamp, self.intensity, *self.passthrough]
        read = [f.source for f in self.features if f not in self.histories]
        return list(dict.fromkeys(c for c in [*read, *roles] if c))

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, 16 hex digits; equal if and only if two schemas mean the same."""
        meant = self.model_dump(mode="json")
        for feature, dumped in zip(self.features, meant["features"], strict=True):
            dumped["column"] = feature.source
        return digest_of(meant)


def digest_of(value: Any) -> str:
    """First 16 hex digits of the SHA-256 of a value's canonical JSON; fingerprints are made of it."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
