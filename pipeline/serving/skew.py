"""Compare served requests with training (`clsd skew`).

Do training and serving give different scores for the same inputs? The check is row by row. Do served inputs differ from the
training data? The check is feature by feature.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from clsd.features.arrays import Array
from clsd.features.encode import encode
from clsd.features.errors import UserError, did_you_mean
from clsd.features.records import begins_as_records, read_records
from clsd.features.schema import FIRST_OOV_ID, MISSING_ID, PADDING_ID, Feature, NumericFeature, Schema
from clsd.features.tokens import arrow_type, as_float32, source_type
from clsd.features.transform import first_value_id
from clsd.pipeline.evaluation.drift import bin_labels, edges_of, psi
from clsd.pipeline.serving.export import scoring_function, trainer_scores
from clsd.pipeline.serving.predict import checked_value, read_rows
from clsd.pipeline.serving.serving_inputs import OUTPUTS, require_free_names
from clsd.pipeline.shared.dataset import STATISTICS_QUANTILES, STATISTICS_TOP, Dataset
from clsd.pipeline.shared.model_versions import exported_config, verified_metadata
from clsd.pipeline.training.checkpoints import read_run
from clsd.pipeline.training.trained_model import load_trained


def skew(
    log: Path,
    dataset: Dataset,
    run: Path,
    *,
    max_difference: float,
    max_psi: float,
    model: Path | None = None,
    ignore: Sequence[str] = (),
) -> dict[str, Any]:
    """Compare a log of served requests with a training run and its data set.

    A feature's PSI minus the PSI that chance gives for so few rows is compared with ``max_psi``.

    Args:
        log: JSON lines, or TFRecords of TF Serving's PredictionLog.
        dataset, run: the data set and the run of the served model.
        max_difference: largest difference of a score; a score that is not finite differs too.
        max_psi: largest PSI of a feature, beyond chance.
        model: the served version, for its export settings; None for those of the run's config.
        ignore: features that may drift.

    Returns:
        rows; scores (by output: number compared, number that differ, the largest difference, or None if it is not finite, and
        its row, from 1); features (largest PSI first: psi, chance, and for training and serving the shares of missing and of
        unknown values); and the names of outputs and features that are out of bounds, under differ and moved.

    Raises:
        UserError: a fault of the log, the run or the model.
    """
    schema = dataset.schema
    require_free_names([name for f in schema.features for name in (f.name, f.source)])
    config, trained = load_trained(run, dataset)
    if model is not None:
        metadata = verified_metadata(model, "copy it again, or leave out --model")
        if metadata["fingerprint"] != read_run(run, "train again")["fingerprint"]:
            raise UserError(str(model), f"is not from the run in {run}", "give the run that it was exported from")
        config = config.model_copy(update={"export": exported_config(model).export})
    for name in ignore:
        if name not in {f.name for f in schema.inputs}:
            raise UserError(
                f"--ignore {name}", "is not an input of the model", did_you_mean(name, [f.name for f in schema.inputs])
            )
    rows = list(_served_rows(log, {f.name: 1 + pa.types.is_list(arrow_type(f)) for f in schema.inputs}))
    if not rows:
        raise UserError(str(log), "holds no request", "give a log of requests and their answers")
    table = _as_table(schema, rows, str(log))
    try:
        expected = trainer_scores(dataset, trained.spec, scoring_function(config, dataset, trained), table)
    except pa.ArrowInvalid as error:  # text with a part that is not a number
        what = f"holds a value that is invalid in a log ({error})"
        raise UserError(str(log), what, "find the request, and fix the client") from None
    scores, differ = {}, []
    for name in OUTPUTS:
        known = np.array([row.get(name) is not None for row in rows])
        if not known.any():
            continue
        logged = np.array([_number(row.get(name), log, at, name) for at, row in enumerate(rows, 1)])
        off = np.abs(logged - np.array(expected[name]))
        off = np.where(known, np.where(np.isfinite(off), off, np.inf), 0.0)
        at = int(np.argmax(off))
        scores[name] = {
            "compared": int(known.sum()),
            "differ": int((off > max_difference).sum()),
            "largest": _finite(off[at]),
            "row": at + 1,
            "served": _finite(logged[at]),
            "trained": _finite(expected[name][at]),
        }
        differ += [name] if scores[name]["differ"] else []
    features = _features(dataset, table)
    return {
        "rows": len(rows),
        "scores": scores,
        "features": [feature._asdict() for feature in features],
        "differ": differ,
        "moved": [f.feature for f in features if f.psi - f.chance > max_psi and f.feature not in ignore],
    }


def _number(value: Any, log: Path, row: int, name: str) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(
            f"{log}:{row}", f"'{name}' is {json.dumps(value)[:80]}, which is not a number", "correct the row"
        )
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _finite(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None


class Compared(NamedTuple):
    """One feature in training and in serving, both encoded.

    Args:
        feature: name of the feature.
        psi: population stability index, with missing and unknown values as bins.
        chance: the 95 % quantile of the PSI of as many rows drawn from the training distribution.
        missing, unknown: shares of rows without a value and with an unknown value, in training and in serving.
        what: the bin or value whose share differs most, with both shares.
    """

    feature: str
    psi: float
    chance: float
    missing: tuple[float, float]
    unknown: tuple[float, float]
    what: str


def _features(dataset: Dataset, table: pa.Table) -> list[Compared]:
    """Compare each input of the model; the largest PSI comes first.

    The first shard, a random part of the training split, stands for training. The requests are encoded as in training.
    """
    (batch,) = table.combine_chunks().to_batches()
    served: tuple[Any, Any] = encode(dataset.transform, batch)
    rows = dataset.read("train", shards=1)
    trained: tuple[Any, Any] = rows.ids, rows.values
    result, numeric = [], [f.name for f in dataset.schema.numeric]
    for feature in dataset.schema.inputs:
        twins: list[Any] = []
        for ids, values in (trained, served):
            if feature.name in dataset.schema.id_slices:
                twins.append(ids[:, dataset.schema.id_slices[feature.name]])
            else:
                twins.append(values[:, numeric.index(feature.name)])
        compare = _ids if feature.name in dataset.schema.id_slices else _numbers
        labels, p, q = compare(dataset, feature, *twins)
        absent = _missing(dataset, feature, batch, *twins)
        unknown = _unknown(dataset, feature, *twins)
        largest = int(np.argmax(np.abs(q - p)))
        what = f"{labels[largest]}: {p[largest]:.1%} to {q[largest]:.1%}"
        result.append(Compared(feature.name, psi(p, q), _chance(p, table.num_rows), absent, unknown, what))
    return sorted(result, key=lambda compared: (-compared.psi, compared.feature))


def _chance(shares: Array, rows: int) -> float:
    drawn = np.random.default_rng(0).multinomial(rows, shares / shares.sum(), 200) / rows
    return float(np.quantile([psi(shares, result) for result in drawn], 0.95))


def _ids(dataset: Dataset, feature: Feature, trained: Array, served: Array) -> tuple[list[str], Array, Array]:
    """Shares of the most frequent ids of training, and of all other ids."""
    counts = [np.bincount(ids[ids != PADDING_ID]) for ids in (trained, served)]
    top = np.argsort(-counts[0], kind="stable")[:STATISTICS_TOP]
    top = top[counts[0][top] > 0]
    shares = []
    for count in counts:
        named = np.append(count, 0)[np.minimum(top, len(count))]
        shares.append(np.append(named, count.sum() - named.sum()) / max(count.sum(), 1))
    if isinstance(feature, NumericFeature):
        names = {int(i): f"bucket {int(i) - FIRST_OOV_ID}" if i != MISSING_ID else "(missing)" for i in top}
    else:
        names = dict(enumerate(dataset.transform.id_names(feature.name)))
    return [*(names.get(int(i), str(i)) for i in top), "all others"], shares[0], shares[1]


def _numbers(dataset: Dataset, feature: Feature, trained: Array, served: Array) -> tuple[list[str], Array, Array]:
    """Shares between the quantiles of training, of scaled numbers. A missing number is the mean."""
    edges = edges_of(np.quantile(trained, STATISTICS_QUANTILES))
    shares = []
    for x in map(np.sort, (trained, served)):
        below = [int(np.searchsorted(x, edge.value, side="right" if edge.closed else "left")) for edge in edges]
        shares.append(np.diff([0, *below, len(x)]) / len(x))
    return [f"{label}, scaled" for label in bin_labels(edges, 3)], shares[0], shares[1]


def _missing(
    dataset: Dataset, feature: Feature, batch: pa.RecordBatch, trained: Array, served: Array
) -> tuple[float, float]:
    if feature.name in dataset.schema.id_slices:
        absent = [np.mean(((ids == MISSING_ID) | (ids == PADDING_ID)).all(axis=1)) for ids in (trained, served)]
        return float(absent[0]), float(absent[1])
    counted = dataset.statistics["features"][feature.name]["missing"].get("train", {"rows": 0, "of": 0})
    there = feature.source in batch.schema.names
    asked = float(np.mean(np.isnan(as_float32(batch.column(feature.source))))) if there else 1.0
    return counted["rows"] / max(counted["of"], 1), asked


def _unknown(dataset: Dataset, feature: Feature, trained: Array, served: Array) -> tuple[float, float]:
    if isinstance(feature, NumericFeature) or dataset.schema.vocabulary_source(feature).encoding == "hash":
        return 0.0, 0.0
    first = first_value_id(dataset.schema.vocabulary_source(feature))
    result = [np.mean(((ids >= FIRST_OOV_ID) & (ids < first)).any(axis=1)) for ids in (trained, served)]
    return float(result[0]), float(result[1])


def _as_table(schema: Schema, rows: list[dict[str, Any]], where: str) -> pa.Table:
    """The inputs of the rows as columns of the log, without the columns that no row has."""
    columns: dict[str, pa.Array] = {}
    for feature in schema.features:
        if not any(feature.name in row or feature.source in row for row in rows):
            continue
        kind = source_type(schema, feature.source)
        is_list = pa.types.is_list(kind)
        single = kind.value_type if is_list else kind
        dtype = "float32" if pa.types.is_floating(single) else "string" if pa.types.is_string(single) else "int64"
        result = [row.get(feature.name, row.get(feature.source)) for row in rows]
        if not is_list:  # in an Example, a single value is a list too
            result = [(value[0] if value else None) if isinstance(value, list) else value for value in result]
        checked = [checked_value(v, dtype, is_list, f"{where}:{at}", feature.name) for at, v in enumerate(result, 1)]
        if dtype == "float32":
            checked = [None if value is None else float(value) for value in checked]
        columns[feature.source] = pa.array(checked, kind)
    if not columns:
        raise UserError(
            where, "names none of the model's inputs", f"known: {', '.join(f.name for f in schema.features)}"
        )
    return pa.table(columns)


def _served_rows(log: Path, ranks: dict[str, int]) -> Iterator[dict[str, Any]]:
    """Inputs and outputs of each row, by name; ``ranks`` are the ranks of the inputs of ``serving_default``."""
    try:
        with log.open("rb") as file:
            recorded = begins_as_records(file.read(12))
    except OSError as error:
        raise UserError(
            str(log), f"cannot be read ({error.strerror})", "give a log of requests and their answers"
        ) from None
    if recorded:
        with log.open("rb") as file:
            for number, record in enumerate(read_records(file, str(log))):
                yield from _rows_of(record, ranks, f"{log}: record {number}")
        return
    try:
        with log.open(encoding="utf-8-sig", newline="\n") as lines:
            yield from read_rows(lines, str(log))
    except UnicodeDecodeError:
        raise UserError(str(log), "is not UTF-8 text", "give JSON lines, or TFRecords of PredictionLog") from None


def _rows_of(record: bytes, ranks: dict[str, int], where: str) -> Iterator[dict[str, Any]]:
    """The rows of a ``PredictionLog``. A request without a response has inputs only."""
    from google.protobuf.message import DecodeError
    from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

    from clsd.features.tf_runtime import tf  # before TensorFlow itself

    try:
        log = PredictionLog.FromString(record)
        kind = log.WhichOneof("log_type")
        if kind is None:
            raise DecodeError
    except DecodeError:
        raise UserError(
            where, "is not a PredictionLog of TF Serving", "give JSON lines, or TFRecords of PredictionLog"
        ) from None
    metadata = getattr(log, kind)
    if kind == "predict_log":
        arrays = {name: tf.make_ndarray(tensor) for name, tensor in metadata.request.inputs.items()}
        answers = {name: tf.make_ndarray(tensor) for name, tensor in metadata.response.outputs.items()}
        if set(arrays) == {"examples"} and "examples" not in ranks:
            try:
                rows = [_of_example(tf.train.Example.FromString(example)) for example in arrays["examples"].ravel()]
            except DecodeError:
                raise UserError(
                    where, "holds something other than a tf.train.Example", "check what the client sent"
                ) from None
        else:
            rows = _of_arrays(arrays, ranks)
        answers = {name: answer.ravel() for name, answer in answers.items() if name in OUTPUTS}
    elif kind in ("classify_log", "regress_log"):
        rows = [_of_example(example) for example in metadata.request.input.example_list.examples]
        if kind == "classify_log":
            ctr = [answer.classes[-1].score for answer in metadata.response.result.classifications]
        else:
            ctr = [answer.value for answer in metadata.response.result.regressions]
        answers = {"ctr": np.array(ctr)}
    else:
        raise UserError(where, f"is a {kind}, which holds no rows", "log predict, classify or regress requests")
    for at, row in enumerate(rows):
        yield {**row, **{name: float(answer[at]) for name, answer in answers.items() if at < len(answer)}}


def _of_arrays(arrays: dict[str, Any], ranks: dict[str, int]) -> list[dict[str, Any]]:
    """Rows of a request's tensors. An input with an additional dimension has one value per candidate; inputs with a single row
    are broadcast to all rows."""
    cells = {
        name: array if array.ndim > ranks.get(name, array.ndim) else np.expand_dims(array, 1)
        for name, array in arrays.items()
    }
    shapes = [array.shape[:2] for array in cells.values()]
    rows, num_candidates = (
        (0 if 0 in sizes else max(sizes) for sizes in zip(*shapes, strict=True)) if shapes else (0, 0)
    )
    wide = {name: np.broadcast_to(array, (rows, num_candidates, *array.shape[2:])) for name, array in cells.items()}
    return [
        {name: _plain(array[i, j]) for name, array in wide.items()} for i in range(rows) for j in range(num_candidates)
    ]


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [_plain(each) for each in value]
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    return value.item() if isinstance(value, np.generic) else value


def _of_example(example: Any) -> dict[str, Any]:
    row = {}
    for name, feature in example.features.feature.items():
        kind = feature.WhichOneof("kind")
        result = [_plain(value) for value in getattr(feature, kind).value] if kind else []
        row[name] = result
    return row
