"""Requests that a model in service answered, against what training would have made of them.

Two things go wrong between training and serving: a model that scores the same inputs otherwise, and inputs that are not what the
model was trained on. The first is looked for row by row, the second feature by feature.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from features.encode import encode
from features.errors import UserError
from features.records import read_records
from features.schema import FIRST_OOV_ID, CategoricalFeature, Schema
from features.tokens import raw_type
from features.transform import Transform, first_value_id
from pipeline.analyse import partials
from pipeline.columns import KEY, LABEL, SPLIT, TIME, USER
from pipeline.dataset import Dataset
from pipeline.drift import moved
from pipeline.export import scoring_of, trainer_scores
from pipeline.predict import read_rows
from pipeline.profile import QUANTILES, describe, sampled, values
from pipeline.signatures import OUTPUTS
from pipeline.threads import ONE
from pipeline.train import load_trained


@dataclass(frozen=True)
class Served:
    """What the served requests look like, as :func:`pipeline.drift.moved` asks it of a data set."""

    schema: Schema
    transform: Transform
    statistics: dict[str, Any]


def skew(log: Path, dataset: Dataset, run: Path, *, max_difference: float, max_psi: float) -> dict[str, Any]:
    """Compare a log of served requests with a training run and its data set.

    Args:
        log: JSON lines, or TFRecords of TF Serving's PredictionLog.
        dataset, run: that the model in service is from.
        max_difference: of a score; what is more differs.
        max_psi: stability index of a feature; one that has more moved.

    Returns:
        rows; scores (by output: how many were compared, how many differ, the largest difference and its row, from 1);
        features (the one that moved most first: psi, shares that are missing, shares that training does not know, each of
        training and served); and the names under differ and moved.

    Raises:
        UserError: of the log or of the run.
    """
    config, model = load_trained(run, dataset)
    rows = list(_served_rows(log, config.export.candidates))
    if not rows:
        raise UserError(str(log), "holds no request", "give a log of requests and their answers")
    table = _as_table(dataset.schema, rows, str(log))
    expected = trainer_scores(dataset, scoring_of(config, dataset, model), table)
    scores, differ = {}, []
    for name in OUTPUTS:
        logged = np.array([_number(row.get(name), log, at, name) for at, row in enumerate(rows, 1)])
        known = np.isfinite(logged)
        if not known.any():
            continue
        off = np.where(known, np.abs(logged - np.array(expected[name])), 0.0)
        at = int(np.argmax(off))
        scores[name] = {
            "compared": int(known.sum()),
            "differ": int((off > max_difference).sum()),
            "largest": float(off[at]),
            "row": at + 1,
            "served": float(logged[at]),
            "trained": float(expected[name][at]),
        }
        differ += [name] if scores[name]["differ"] else []
    features = _features(dataset, table)
    return {
        "rows": len(rows),
        "scores": scores,
        "features": features,
        "differ": differ,
        "moved": [f["feature"] for f in features if f["psi"] is not None and f["psi"] > max_psi],
    }


def _number(value: Any, log: Path, row: int, name: str) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{log}:{row}", f"'{name}' is {json.dumps(value)[:80]}, and no number", "correct the row")
    return float(value)


def _features(dataset: Dataset, table: pa.Table) -> list[dict[str, Any]]:
    """How far each feature that was asked with is from the training split."""
    schema = dataset.schema
    # An input that no request has is missing, in the served model too.
    asked = schema.model_copy(update={"features": schema.inputs})
    zeros = np.zeros(table.num_rows, np.int64)
    own = {
        KEY: np.arange(table.num_rows).astype(np.uint64),
        LABEL: zeros,
        SPLIT: zeros.astype(np.int8),
        TIME: zeros,
        USER: zeros,
    }
    batch = table
    for name, column in own.items():
        batch = batch.append_column(name, pa.array(column))
    (batch,) = batch.combine_chunks().to_batches()
    learnt: dict[str, Any] = {}
    for key, partial in partials(asked, batch, ONE):
        kind = key.partition(":")[0]
        if kind in ("vocabulary", "tokens"):
            learnt[key] = values(partial[0], top=partial[0].num_rows)
        elif kind == "sampled":
            learnt[key] = sampled(partial[0].values)
        elif kind == "range":
            learnt[key] = partial[0]
        elif kind == "spread":
            learnt[key] = np.quantile(partial[0].values, QUANTILES).tolist()
        elif kind == "missing":
            learnt[key] = partial
    served = Served(asked, Transform(asked), describe(asked, learnt))
    unknown = _unknown(dataset, table)
    found = [feature for feature in moved(dataset, served) if feature.feature in {f.name for f in asked.features}]
    return [{**feature._asdict(), "unknown": unknown.get(feature.feature)} for feature in found]


def _unknown(dataset: Dataset, table: pa.Table) -> dict[str, tuple[float, float]]:
    """Shares of rows whose value no vocabulary has, of training and served, by feature of one value a row."""
    ids, _ = encode(dataset.transform, table.combine_chunks().to_batches()[0])
    quality, trained, out = dataset.manifest["splits"]["train"]["quality"], dataset.rows("train"), {}
    for feature in dataset.schema.vocabularies:
        if isinstance(feature, CategoricalFeature) and feature.source in table.column_names and feature.name in quality:
            mine = ids[:, dataset.schema.id_slices[feature.name].start]
            share = float(np.mean((mine >= FIRST_OOV_ID) & (mine < first_value_id(feature))))
            out[feature.name] = quality[feature.name]["out_of_vocabulary"] / max(trained, 1), share
    return out


def _as_table(schema: Schema, rows: list[dict[str, Any]], where: str) -> pa.Table:
    """The inputs of the rows as columns of the log, those that no row has left out."""
    columns: dict[str, pa.Array] = {}
    for feature in schema.features:
        if not any(feature.name in row or feature.source in row for row in rows):
            continue
        kind = raw_type(feature)
        found = [row.get(feature.name, row.get(feature.source)) for row in rows]
        if not pa.types.is_list(kind):  # in an Example one value is a list, too
            found = [(value[0] if value else None) if isinstance(value, list) else value for value in found]
        try:
            columns[feature.source] = pa.array(found, kind)
        except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError):
            at = next(at for at, value in enumerate(found) if not _fits(value, kind))
            what = f"'{feature.name}' is {json.dumps(found[at], default=str)[:80]}, the model takes {kind}"
            raise UserError(f"{where}:{at + 1}", what, "correct the row") from None
    if not columns:
        raise UserError(
            where, "names none of the model's inputs", f"known: {', '.join(f.name for f in schema.features)}"
        )
    return pa.table(columns)


def _fits(value: Any, kind: pa.DataType) -> bool:
    try:
        pa.array([value], kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError):
        return False
    return True


def _served_rows(log: Path, candidates: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Inputs and outputs of each row, by name."""
    try:
        with log.open("rb") as file:
            head = file.read(1)
    except OSError as error:
        raise UserError(
            str(log), f"cannot be read ({error.strerror})", "give a log of requests and their answers"
        ) from None
    if head.strip() in (b"{", b""):
        try:
            yield from read_rows(log.read_text(encoding="utf-8").splitlines(), str(log))
        except UnicodeDecodeError:
            raise UserError(str(log), "is no UTF-8 text", "give JSON lines, or TFRecords of PredictionLog") from None
        return
    with log.open("rb") as file:
        for number, record in enumerate(read_records(file, str(log))):
            yield from _rows_of(record, candidates, f"{log}: record {number}")


def _rows_of(record: bytes, candidates: Sequence[str], where: str) -> Iterator[dict[str, Any]]:
    """The rows of a ``PredictionLog``; a request that brings no answer has inputs alone."""
    from google.protobuf.message import DecodeError
    from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

    from features.tf_runtime import tf  # TensorFlow must not come first

    try:
        log = PredictionLog.FromString(record)
        kind = log.WhichOneof("log_type")
        if kind is None:
            raise DecodeError
    except DecodeError:
        raise UserError(
            where, "is no PredictionLog of TF Serving", "give JSON lines, or TFRecords of PredictionLog"
        ) from None
    told = getattr(log, kind)
    if kind == "predict_log":
        arrays = {name: tf.make_ndarray(tensor) for name, tensor in told.request.inputs.items()}
        answers = {name: tf.make_ndarray(tensor) for name, tensor in told.response.outputs.items()}
        if "examples" in arrays:
            rows = [_of_example(tf.train.Example.FromString(example)) for example in arrays["examples"].ravel()]
        else:
            rows = _of_arrays(arrays, candidates if told.request.model_spec.signature_name == "rank" else ())
        answers = {name: answer.ravel() for name, answer in answers.items() if name in OUTPUTS}
    elif kind in ("classify_log", "regress_log"):
        rows = [_of_example(example) for example in told.request.input.example_list.examples]
        if kind == "classify_log":
            ctr = [answer.classes[-1].score for answer in told.response.result.classifications]
        else:
            ctr = [answer.value for answer in told.response.result.regressions]
        answers = {"ctr": np.array(ctr)}
    else:
        raise UserError(where, f"is a {kind}, which holds no rows", "log predict, classify or regress requests")
    for at, row in enumerate(rows):
        yield {**row, **{name: float(answer[at]) for name, answer in answers.items() if at < len(answer)}}


def _of_arrays(arrays: dict[str, Any], candidates: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of a request's tensors, one for each of its ``candidates`` where it has some; one row stands for all."""
    cells = {name: array if name in candidates else np.expand_dims(array, 1) for name, array in arrays.items()}
    rows, many = (max((array.shape[axis] for array in cells.values()), default=0) for axis in (0, 1))
    wide = {name: np.broadcast_to(array, (rows, many, *array.shape[2:])) for name, array in cells.items()}
    return [{name: _plain(array[i, j]) for name, array in wide.items()} for i in range(rows) for j in range(many)]


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
        found = [_plain(value) for value in getattr(feature, kind).value] if kind else []
        row[name] = found
    return row
