"""One YAML file describes a whole run; this is what may stand in it."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from clsd.features.errors import did_you_mean
from clsd.features.schema import Schema, Strict
from clsd.models.settings import ConfidenceSettings, ModelSettings, OptimizerSettings, TableOptimizerSettings
from clsd.pipeline.shared.headline_metrics import DIRECTED_METRICS

#: A text; of a time that YAML has read as one, its text.
Instant = Annotated[str, BeforeValidator(lambda given: given.isoformat() if isinstance(given, date) else given)]


class CsvSettings(Strict):
    """How a CSV log is written."""

    delimiter: str = Field(default=",", min_length=1, max_length=1, description="what stands between two fields")
    quote: str = Field(
        default='"',
        max_length=1,
        description="what a field may stand between; twice within it means itself; empty: none",
    )
    escape: str = Field(
        default="", max_length=1, description="what takes the meaning from the next character; empty: none"
    )
    columns: list[str] = Field(default=[], description="names of the columns where the file has no header line")
    null_values: list[str] = Field(default=["", "NULL", "null", "NaN", "nan"], description="texts that mean missing")


class LogSettings(Strict):
    """Where the click logs are."""

    dataset: str = Field(
        default="", description="a public data set that `clsd run` fetches first, see `clsd dataset --help`"
    )
    dataset_options: dict[str, Any] = Field(default={}, description="options of the synthetic generator, such as rows")
    files: list[str] = Field(default=[], description="paths or glob patterns; relative ones from the working directory")
    format: Literal["auto", "jsonl", "csv", "parquet", "avro"] = Field(
        default="auto", description="auto: by the file's ending"
    )
    csv: CsvSettings = Field(default=CsvSettings(), description="the CSV dialect")
    chunk_mebibytes: int = Field(
        default=32, ge=1, description="uncompressed text files and Avro files are read in parallel pieces this large"
    )


class SplitSettings(Strict):
    """How rows become train, validation and test."""

    by: Literal["time", "user_time", "hash"] = Field(
        default="time",
        description="time: the newest rows are the test; user_time: each user's newest; hash: of a key column, at random",
    )
    validation: float = Field(default=0.1, ge=0, lt=1, description="share of the rows (user_time: of each user's)")
    test: float = Field(default=0.1, ge=0, lt=1, description="share of the rows (user_time: of each user's)")
    validation_from: Instant = Field(
        default="", description="time: first instant of the validation split, ISO 8601, such as 2026-05-01T08:00:00Z"
    )
    test_from: Instant = Field(default="", description="time: first instant of the test split, ISO 8601")
    gap_hours: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="time: the last hours before the validation and the test split are left out",
    )
    key: str = Field(default="", description="hash: column whose equal values stay together, such as the user")

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
    """Non-clicks for logs that hold clicks alone: items drawn at random that the user never clicked in any split."""

    per_click: int = Field(ge=1, le=100, description="non-clicks a click")
    source: Literal["uniform", "popularity"] = Field(
        default="uniform", alias="from", description="every item alike, or in proportion to its clicks in training"
    )
    item: str = Field(description="column that names the item")
    item_columns: list[str] = Field(default=[], description="columns that belong to the item and change with it")


class QualityBounds(Strict):
    """What must hold of every split; where it does not, the job fails and leaves no data set."""

    max_missing: float = Field(default=1.0, ge=0, le=1, description="largest share of rows without a feature's value")
    max_out_of_vocabulary: float = Field(
        default=1.0, ge=0, description="most ids a row, on average, that a feature's vocabulary does not know"
    )
    min_ctr: float = Field(default=0.0, ge=0, le=1, description="least CTR")
    max_ctr: float = Field(default=1.0, ge=0, le=1, description="largest CTR")


class PreprocessSettings(Strict):
    """The Beam job."""

    split: SplitSettings = Field(default=SplitSettings(), description="train, validation, test")
    negatives: NegativeSettings | None = Field(default=None, description="sampled non-clicks; none by default")
    keep_negatives: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="share of the training split's non-clicks that is kept, at random; ctr is corrected for it",
    )
    max_refused: float = Field(
        default=0.01, ge=0, le=1, description="largest share of refused rows; above it the job fails"
    )
    gates: QualityBounds = Field(default=QualityBounds(), description="what must hold of the data set")
    rows_per_block: int = Field(default=512, ge=1, description="rows a record")
    rows_per_shard: int = Field(default=131_072, ge=1, description="rows a file, roughly")
    gzip: bool = Field(
        default=False,
        description="compress the shards: smaller on disk and over a network, slower to write and to read",
    )
    threads: int = Field(
        default=0,
        ge=0,
        description="threads of a worker; 0: on this machine its cores, shared out among the workers, and 1 on another engine",
    )
    stalled_minutes: float = Field(
        default=30.0,
        ge=0,
        description="another engine's job is given up where it has written nothing for so long; 0: never",
    )
    golden_rows: int = Field(default=512, ge=1, description="raw test rows kept for the export's canary")


class EarlyStopping(Strict):
    """Stop when the validation metric no longer improves; the best checkpoint is kept."""

    metric: str = Field(default="auc", description="auc, gauc or log_loss, of the validation split")
    mode: Literal["max", "min"] = Field(default="max", description="whether more or less is better")
    patience: int = Field(default=2, ge=1, description="epochs without improvement, counted after warm-up")

    @model_validator(mode="after")
    def _known(self) -> EarlyStopping:
        directions = {"auc": "max", "gauc": "max", "log_loss": "min"}
        if self.metric not in directions:
            raise ValueError(f"metric: '{self.metric}' is not known; {did_you_mean(self.metric, directions)}")
        if self.mode != directions[self.metric]:
            raise ValueError(f"mode: '{self.metric}' is better the {directions[self.metric]} it is, not {self.mode}")
        return self


class MonitorSettings(Strict):
    """Bounds that a weighted run must keep, looked at over a window of steps; what falls below one has collapsed."""

    action: Literal["stop", "warn"] = Field(default="stop", description="stop the run with an error, or warn once")
    window_steps: int = Field(default=200, ge=1, description="weighted steps of a window")
    predicted_over_real: float = Field(default=0.4, ge=0, description="least mean prediction, as a share of the CTR")
    effective_clicks: float = Field(
        default=0.1, ge=0, le=1, description="least share of the clicks that the weights leave effective"
    )
    largest_weight: float = Field(default=0.1, ge=0, description="least value of the largest weight of a click")


class TrainSettings(Strict):
    """The training loop."""

    batch_size: int = Field(default=4096, ge=1, description="rows a step, over all replicas")
    epochs: int = Field(default=5, ge=1, description="passes over the training split, warm-up included")
    embedding_optimizer: TableOptimizerSettings = Field(
        default=TableOptimizerSettings(learning_rate=0.05), description="for the tables"
    )
    dense_optimizer: OptimizerSettings = Field(
        default=OptimizerSettings(name="adam", learning_rate=1e-3), description="for everything else"
    )
    l2: float = Field(default=0.0, ge=0, description="weight of half the squared norm of the dense kernels")
    early_stopping: EarlyStopping | None = Field(
        default=EarlyStopping(), description="null: train all epochs and keep the last one"
    )
    steps_per_call: int = Field(default=32, ge=1, description="steps between two looks of the host")
    replicas: int = Field(default=0, ge=0, description="0: every GPU, or one CPU; n: n GPUs, or n logical CPU devices")
    checkpoint_minutes: float = Field(
        default=10.0, ge=0, description="minutes between two checkpoints within an epoch; 0: one every steps_per_call"
    )
    keep_checkpoints: int = Field(default=3, ge=2, description="newest checkpoints kept beside the best one")
    deterministic: bool = Field(
        default=True, description="same seed, same machine, same weights; false where a GPU has no deterministic kernel"
    )
    precision: Literal["float32", "mixed_bfloat16"] = Field(
        default="float32",
        description="mixed_bfloat16: in training the dense layers compute in bfloat16; tables, variables, logits, weights and "
        "losses stay float32, and so does all that is computed once trained",
    )
    xla: bool = Field(
        default=False,
        description="XLA compiles what it can of a step, the dense layers, in clusters; results differ by rounding",
    )
    tensorboard: bool = Field(default=True, description="write TensorBoard event files")
    profile_calls: int = Field(
        default=0,
        ge=0,
        description="calls of steps_per_call that TensorFlow's profiler traces, from the third one on; TensorBoard shows them "
        "with tensorboard-plugin-profile",
    )
    teacher_cache_clicks: int = Field(
        default=20_000_000,
        ge=0,
        description="most training clicks whose frozen teacher's scores are kept in memory, some 40 bytes each; 0: none",
    )
    monitor: MonitorSettings = Field(default=MonitorSettings(), description="stops a run that collapses")


class EvaluateSettings(Strict):
    """The report."""

    split: Literal["validation", "test"] = Field(default="test", description="which rows to measure on")
    item: str = Field(
        default="",
        description="feature that names the item, for correlations given its popularity; else negatives.item",
    )
    calibration_bins: int = Field(default=15, ge=2, description="equally filled bins of the calibration curve")


class CompareSettings(Strict):
    """``clsd compare``: variants of the method against its controls."""

    variants: dict[str, dict[str, Any]] = Field(
        default={}, description="variants of your own: by name, what each changes of confidence"
    )
    references: list[str] = Field(
        default=["plain", "permuted", "popularity"], description="variants that the others are held against"
    )
    level: float = Field(default=0.95, gt=0, lt=1, description="confidence level of the intervals")
    bootstrap_rounds: int = Field(default=1000, ge=0, description="draws of users for one pair of models; 0: none")
    ndcg_at: int = Field(default=10, ge=1, description="rank at which NDCG by intensity ends")


class ExportSettings(Strict):
    """The SavedModel."""

    calibration: Literal["exact", "cheap"] = Field(
        default="exact",
        description="ctr: exact asks the teacher as well, a second forward pass; cheap estimates the weight from the first",
    )
    canary_tolerance: float = Field(
        default=1e-5,
        gt=0,
        description="largest difference that the canary accepts of a score; relative, where a confidence is above 1",
    )
    candidates: list[str] = Field(
        default=[],
        description="features of the candidates of a `rank` request, such as item_id; the others are the user's, sent once",
    )
    margins: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default={"auc": 0.002},
        description="by how much a metric may be worse than that of the version in service (`--against`); log_loss and ece "
        "move with the CTR of the test rows as well",
    )
    keep: int = Field(default=0, ge=0, description="newest versions that stay when one is published; 0 keeps all")

    @model_validator(mode="after")
    def _margins_have_a_worse(self) -> ExportSettings:
        for name in self.margins:
            if name not in DIRECTED_METRICS:
                raise ValueError(
                    f"margins: '{name}' is no metric with a better and a worse; {did_you_mean(name, DIRECTED_METRICS)}"
                )
        return self


class Config(Strict):
    """A whole run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="names the run's directory, runs/<name>")
    seed: int = Field(default=1, ge=0, lt=2**31, description="of everything that is random")
    logs: LogSettings = Field(description="where the click logs are")
    row_schema: Schema = Field(alias="rows", description="what a row means")
    preprocess: PreprocessSettings = Field(default=PreprocessSettings(), description="the Beam job")
    model: ModelSettings = Field(default=ModelSettings(), description="the backbone")
    confidence: ConfidenceSettings = Field(default=ConfidenceSettings(), description="the method")
    train: TrainSettings = Field(default=TrainSettings(), description="the training loop")
    evaluate: EvaluateSettings = Field(default=EvaluateSettings(), description="the report")
    compare: CompareSettings = Field(default=CompareSettings(), description="the comparison")
    export: ExportSettings = Field(default=ExportSettings(), description="the SavedModel")

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
                        f"preprocess.negatives: '{column}' is no column of rows; {did_you_mean(column, self.row_schema.columns)}"
                    )
        if split.key and split.key not in self.row_schema.columns:
            raise ValueError(f"preprocess.split.key: '{split.key}' is no column of rows; add it to rows.passthrough")
        lists = [f.source for f in self.row_schema.ragged if not f.separator]
        if split.key in {*lists, self.row_schema.label, self.row_schema.timestamp, self.row_schema.intensity} - {""}:
            raise ValueError(f"preprocess.split.key: '{split.key}' holds no key; name a user, a session or the like")
        stopping = self.train.early_stopping
        if stopping and stopping.metric == "gauc" and not self.row_schema.user:
            raise ValueError("train.early_stopping.metric: gauc needs rows.user")
        names = [feature.name for feature in self.row_schema.categorical]
        if self.evaluate.item and self.evaluate.item not in names:
            raise ValueError(
                f"evaluate.item: '{self.evaluate.item}' is no categorical feature; {did_you_mean(self.evaluate.item, names)}"
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
    """What is wrong with the features of ``export.candidates``; "" if nothing."""
    inputs = [feature.name for feature in rows.inputs]
    if twice := next((name for name in candidates if candidates.count(name) > 1), None):
        return f"'{twice}' stands there twice; name it once"
    wrong = next((name for name in candidates if name not in inputs), None)
    return "" if wrong is None else f"'{wrong}' is no input of the model; {did_you_mean(wrong, inputs)}"
