"""The config: every setting that a YAML file may hold."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from clsd.features.errors import did_you_mean
from clsd.features.schema import Schema, Strict
from clsd.models.settings import ConfidenceSettings, ModelSettings, OptimizerSettings, TableOptimizerSettings
from clsd.pipeline.shared.headline_metrics import DIRECTED_METRICS

#: A point in time as text; a time that YAML has parsed becomes text again.
Instant = Annotated[str, BeforeValidator(lambda given: given.isoformat() if isinstance(given, date) else given)]


class CsvSettings(Strict):
    """The CSV dialect."""

    delimiter: str = Field(default=",", min_length=1, max_length=1, description="separator of fields")
    quote: str = Field(
        default='"',
        max_length=1,
        description="quote character; doubled inside a field it means itself; empty: none",
    )
    escape: str = Field(default="", max_length=1, description="escape character; empty: none")
    columns: list[str] = Field(default=[], description="column names, if the file has no header line")
    null_values: list[str] = Field(default=["", "NULL", "null", "NaN", "nan"], description="texts that mean missing")


class LogSettings(Strict):
    """The click logs."""

    dataset: str = Field(
        default="", description="public data set that `clsd run` fetches first; see `clsd dataset --help`"
    )
    dataset_options: dict[str, Any] = Field(default={}, description="options of the synthetic generator, such as rows")
    files: list[str] = Field(default=[], description="paths or glob patterns, relative to the working directory")
    format: Literal["auto", "jsonl", "csv", "parquet", "avro"] = Field(
        default="auto", description="auto: by the file name's ending"
    )
    csv: CsvSettings = Field(default=CsvSettings(), description="the CSV dialect")
    chunk_mebibytes: int = Field(
        default=32, ge=1, le=1024, description="size of an input split of uncompressed text and Avro files"
    )


class SplitSettings(Strict):
    """How rows are split into train, validation and test."""

    by: Literal["time", "user_time", "hash"] = Field(
        default="time",
        description="time: the newest rows are the test split; user_time: each user's newest rows; hash: random, by a key column",
    )
    validation: float = Field(default=0.1, ge=0, lt=1, description="share of the rows (user_time: of each user's rows)")
    test: float = Field(default=0.1, ge=0, lt=1, description="share of the rows (user_time: of each user's rows)")
    validation_from: Instant = Field(
        default="", description="time: start of the validation split in ISO 8601, such as 2026-05-01T08:00:00Z"
    )
    test_from: Instant = Field(default="", description="time: start of the test split in ISO 8601")
    gap_hours: float = Field(
        default=0.0,
        ge=0,
        description="time: hours before the validation and the test split that are left out",
    )
    key: str = Field(default="", description="hash: key column, such as the user; rows with equal values stay together")

    @model_validator(mode="after")
    def _fits(self) -> SplitSettings:
        if self.validation + self.test >= 1:
            raise ValueError("validation + test must be below 1, or nothing is left to train on")
        if bool(self.validation_from) != bool(self.test_from):
            raise ValueError("validation_from and test_from go together")
        if self.by == "hash" and not self.key:
            raise ValueError("by: hash needs key, the column to hash")
        if self.gap_hours and self.by != "time":
            raise ValueError("gap_hours needs by: time; leave it out, or split by time")
        return self

    @property
    def gap(self) -> int:
        """``gap_hours`` in microseconds."""
        return round(self.gap_hours * 3_600_000_000)


class NegativeSettings(Strict):
    """Sampled non-clicks, for logs of clicks alone: random items that the user clicked in no split."""

    per_click: int = Field(ge=1, le=100, description="non-clicks per click")
    source: Literal["uniform", "popularity"] = Field(
        default="uniform",
        alias="from",
        description="uniform: every item alike; popularity: in proportion to its training clicks",
    )
    item: str = Field(description="column of the item")
    item_columns: list[str] = Field(default=[], description="columns that belong to the item")


class QualityBounds(Strict):
    """Bounds on every split. If one is broken, the job fails and leaves no data set."""

    max_missing: float = Field(default=1.0, ge=0, le=1, description="largest share of missing values of a feature")
    max_out_of_vocabulary: float = Field(
        default=1.0, ge=0, description="largest mean number of a feature's out-of-vocabulary ids per row"
    )
    min_ctr: float = Field(default=0.0, ge=0, le=1, description="smallest CTR")
    max_ctr: float = Field(default=1.0, ge=0, le=1, description="largest CTR")


class PreprocessSettings(Strict):
    """The preprocessing job."""

    split: SplitSettings = Field(default=SplitSettings(), description="train, validation and test")
    negatives: NegativeSettings | None = Field(default=None, description="sampled non-clicks")
    keep_negatives: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="random share of the training split's non-clicks that is kept; ctr is corrected for it",
    )
    max_refused: float = Field(
        default=0.01, ge=0, le=1, description="largest share of dead letters; above it the job fails"
    )
    gates: QualityBounds = Field(default=QualityBounds(), description="bounds on the data set")
    rows_per_block: int = Field(default=512, ge=1, le=65_536, description="rows per record")
    rows_per_shard: int = Field(default=131_072, ge=1, le=100_000_000, description="approximate rows per shard")
    gzip: bool = Field(
        default=False,
        description="compress shards with gzip: smaller, and slower to write and read",
    )
    threads: int = Field(
        default=0,
        ge=0,
        le=1024,
        description="threads per worker; 0: this machine's cores divided among its workers, but 1 on other engines",
    )
    stalled_minutes: float = Field(
        default=30.0,
        ge=0,
        description="minutes without output after which a job on another engine is given up; 0: never",
    )
    golden_rows: int = Field(default=512, ge=1, le=1_000_000, description="raw test rows kept for the canary")


class EarlyStopping(Strict):
    """Stop when the validation metric no longer improves, and keep the best epoch."""

    metric: str = Field(default="auc", description="auc, gauc or log_loss on the validation split")
    mode: Literal["max", "min"] = Field(default="max", description="whether more (max) or less (min) is better")
    patience: int = Field(
        default=2,
        ge=1,
        le=1_000_000,
        description="epochs without improvement before stopping, counted after the warm-up",
    )

    @model_validator(mode="after")
    def _known(self) -> EarlyStopping:
        directions = {"auc": "max", "gauc": "max", "log_loss": "min"}
        if self.metric not in directions:
            raise ValueError(f"metric: '{self.metric}' is not known; {did_you_mean(self.metric, directions)}")
        if self.mode != directions[self.metric]:
            raise ValueError(f"mode: '{self.metric}' needs mode: {directions[self.metric]}")
        return self


class MonitorSettings(Strict):
    """The collapse monitor: a weighted run has collapsed if one of three values falls below its bound over a window of steps."""

    action: Literal["stop", "warn"] = Field(
        default="stop", description="stop: end the run with an error; warn: warn once"
    )
    window_steps: int = Field(default=200, ge=1, le=1_000_000_000, description="weighted steps per window")
    predicted_over_real: float = Field(default=0.4, ge=0, description="smallest ratio of mean prediction to CTR")
    effective_clicks: float = Field(
        default=0.1, ge=0, le=1, description="smallest effective sample size of the clicks, as a share of their number"
    )
    largest_weight: float = Field(
        default=0.1, ge=0, description="smallest value that the largest weight of a click may have"
    )


class TrainSettings(Strict):
    """Optimizers, epochs, checkpoints and devices."""

    batch_size: int = Field(default=4096, ge=1, le=2**24, description="rows per step, over all replicas")
    epochs: int = Field(default=5, ge=1, le=1_000_000, description="passes over the training split, warm-up included")
    embedding_optimizer: TableOptimizerSettings = Field(
        default=TableOptimizerSettings(learning_rate=0.05), description="optimizer of embedding tables"
    )
    dense_optimizer: OptimizerSettings = Field(
        default=OptimizerSettings(name="adam", learning_rate=1e-3), description="optimizer of all other weights"
    )
    l2: float = Field(default=0.0, ge=0, description="weight of half the squared norm of the dense kernels")
    early_stopping: EarlyStopping | None = Field(
        default=EarlyStopping(), description="early stopping; null: train all epochs and keep the last"
    )
    steps_per_call: int = Field(default=32, ge=1, le=1_000_000, description="steps per `tf.function` call")
    replicas: int = Field(
        default=0, ge=0, le=1024, description="0: every GPU, or one CPU device; n: n GPUs, or n logical CPU devices"
    )
    checkpoint_minutes: float = Field(
        default=10.0, ge=0, description="minutes between checkpoints within an epoch; 0: one after every call"
    )
    keep_checkpoints: int = Field(
        default=3, ge=2, le=1_000_000, description="number of newest checkpoints that are kept, besides the best epoch"
    )
    deterministic: bool = Field(
        default=True,
        description="same seed and machine, same weights; set to false if a GPU lacks a deterministic kernel",
    )
    precision: Literal["float32", "mixed_bfloat16"] = Field(
        default="float32",
        description="mixed_bfloat16: dense layers train in bfloat16; tables, variables, logits, weights and losses stay float32, "
        "and so does everything after training",
    )
    xla: bool = Field(
        default=False,
        description="compile the dense layers with XLA; results differ by rounding",
    )
    tensorboard: bool = Field(default=True, description="write TensorBoard events")
    profile_calls: int = Field(
        default=0,
        ge=0,
        le=1_000_000,
        description="calls that TensorFlow's profiler traces, from the third on; TensorBoard shows them with "
        "tensorboard-plugin-profile",
    )
    teacher_cache_clicks: int = Field(
        default=20_000_000,
        ge=0,
        le=10**12,
        description="the teacher's scores are kept in memory, about 40 bytes per click, if there are at most this many "
        "training clicks; 0: never",
    )
    monitor: MonitorSettings = Field(default=MonitorSettings(), description="the collapse monitor")


class EvaluateSettings(Strict):
    """Evaluation and report."""

    split: Literal["validation", "test"] = Field(default="test", description="split to evaluate on")
    item: str = Field(
        default="",
        description="feature of the item, for correlations that control for popularity; by default that of "
        "negatives.item",
    )
    calibration_bins: int = Field(
        default=15, ge=2, le=10_000, description="equally filled bins of the calibration curve"
    )


class CompareSettings(Strict):
    """``clsd compare``: variants of the method against its controls."""

    variants: dict[str, dict[str, Any]] = Field(
        default={}, description="your own variants: by name, what each changes in `confidence`"
    )
    references: list[str] = Field(
        default=["plain", "permuted", "popularity"], description="variants that the others are compared with"
    )
    level: float = Field(default=0.95, gt=0, lt=1, description="confidence level of the intervals")
    bootstrap_rounds: int = Field(default=1000, ge=0, le=1_000_000, description="bootstrap draws of users; 0: none")
    ndcg_at: int = Field(default=10, ge=1, le=1_000_000, description="k of NDCG@k by intensity")


class ExportSettings(Strict):
    """What an exported model contains, and what it must meet."""

    calibration: Literal["exact", "cheap"] = Field(
        default="exact",
        description="correction of ctr: exact asks the teacher, a second forward pass; cheap estimates the weight from the first",
    )
    canary_tolerance: float = Field(
        default=1e-5,
        gt=0,
        description="largest difference of a score that the canary accepts; relative for confidences above 1",
    )
    candidates: list[str] = Field(
        default=[],
        description="features of the candidates in a `rank` request, such as item_id; all others are the user's",
    )
    margins: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default={"auc": 0.002},
        description="by how much a metric may be worse than the served version's (`--against`); log_loss and ece also move with "
        "the CTR of the test rows",
    )
    keep: int = Field(default=0, ge=0, le=1_000_000, description="number of newest versions that are kept; 0: all")

    @model_validator(mode="after")
    def _margins_have_a_direction(self) -> ExportSettings:
        for name in self.margins:
            if name not in DIRECTED_METRICS:
                raise ValueError(
                    f"margins: '{name}' is not a metric with a direction; {did_you_mean(name, DIRECTED_METRICS)}"
                )
        return self


class Config(Strict):
    """A whole run."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200, description="name of the run's directory, runs/<name>"
    )
    seed: int = Field(default=1, ge=0, lt=2**31, description="seed of everything random")
    logs: LogSettings = Field(description="the click logs")
    row_schema: Schema = Field(alias="rows", description="the schema")
    preprocess: PreprocessSettings = Field(default=PreprocessSettings(), description="the preprocessing job")
    model: ModelSettings = Field(default=ModelSettings(), description="the backbone")
    confidence: ConfidenceSettings = Field(default=ConfidenceSettings(), description="the method")
    train: TrainSettings = Field(default=TrainSettings(), description="training")
    evaluate: EvaluateSettings = Field(default=EvaluateSettings(), description="evaluation and report")
    compare: CompareSettings = Field(default=CompareSettings(), description="the comparison")
    export: ExportSettings = Field(default=ExportSettings(), description="export")

    @model_validator(mode="after")
    def _roles_fit(self) -> Config:
        split, negatives = self.preprocess.split, self.preprocess.negatives
        if split.by in ("time", "user_time") and not self.row_schema.timestamp:
            raise ValueError(f"preprocess.split.by: {split.by} needs rows.timestamp")
        if (split.by == "user_time" or negatives) and not self.row_schema.user:
            raise ValueError("a per-user split and sampled negatives need rows.user")
        if negatives:
            for column in [negatives.item, *negatives.item_columns]:
                if column not in self.row_schema.columns:
                    raise ValueError(
                        f"preprocess.negatives: '{column}' is not a column that rows names; "
                        f"{did_you_mean(column, self.row_schema.columns)}"
                    )
        if split.key and split.key not in self.row_schema.columns:
            raise ValueError(
                f"preprocess.split.key: '{split.key}' is not a column that rows names; add it to rows.passthrough"
            )
        lists = [f.source for f in self.row_schema.ragged if not f.separator]
        if split.key in {*lists, self.row_schema.label, self.row_schema.timestamp, self.row_schema.intensity} - {""}:
            raise ValueError(
                f"preprocess.split.key: '{split.key}' cannot be a key; name a column such as the user or the session"
            )
        stopping = self.train.early_stopping
        if stopping and stopping.metric == "gauc" and not self.row_schema.user:
            raise ValueError("train.early_stopping.metric: gauc needs rows.user")
        names = [feature.name for feature in self.row_schema.categorical]
        if self.evaluate.item and self.evaluate.item not in names:
            raise ValueError(
                f"evaluate.item: '{self.evaluate.item}' is not a categorical feature; {did_you_mean(self.evaluate.item, names)}"
            )
        if self.confidence.weighted and self.confidence.source == "intensity" and not self.row_schema.intensity:
            raise ValueError(
                "confidence.source: intensity needs rows.intensity; name its column, or set source: teacher"
            )
        if self.confidence.gate != "off" and self.confidence.weighted and not self.row_schema.groups:
            raise ValueError(
                "confidence.gate needs rows.groups, the group features of AdGate; name some, or set gate: off"
            )
        if unknown := unknown_candidate(self.row_schema, self.export.candidates):
            raise ValueError(f"export.candidates: {unknown}")
        return self


def unknown_candidate(rows: Schema, candidates: list[str]) -> str:
    """Error text for ``export.candidates``; "" if all of them are inputs of the model."""
    inputs = [feature.name for feature in rows.inputs]
    if twice := next((name for name in candidates if candidates.count(name) > 1), None):
        return f"'{twice}' is listed twice; name it once"
    wrong = next((name for name in candidates if name not in inputs), None)
    return "" if wrong is None else f"'{wrong}' is not an input of the model; {did_you_mean(wrong, inputs)}"
