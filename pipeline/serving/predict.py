"""Score raw rows with an exported model, as a model server would (`clsd predict`)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from clsd.features.errors import UserError, did_you_mean
from clsd.features.paths import as_path
from clsd.features.schema import MISSING_INT
from clsd.features.tf_runtime import register_file_systems, tf
from clsd.pipeline.serving.serving_inputs import as_arrays
from clsd.pipeline.shared.files import read_json
from clsd.pipeline.shared.model_versions import PROVENANCE_FILE, exported_config, newest_version


class Predictor:
    """An exported model that scores raw rows.

    Args:
        directory: a SavedModel, or a directory of versions, of which the newest is used.
    """

    def __init__(self, directory: str | Path) -> None:
        directory = as_path(directory)
        self.directory = newest_version(directory)
        register_file_systems([directory])
        try:
            self._loaded = tf.saved_model.load(str(self.directory))
            self._signature = self._loaded.signatures["serving_default"]
        except (OSError, KeyError, tf.errors.OpError) as error:
            raise UserError(
                str(self.directory), f"is not a complete model ({type(error).__name__})", "export it again"
            ) from error
        self.inputs: dict[str, Any] = self._signature.structured_input_signature[1]
        self._columns = _columns_of(self.directory)

    def unknown(self, rows: list[dict[str, Any]]) -> dict[str, str]:
        """Names in the rows that neither the model nor its log knows, each with a suggestion."""
        known = {*self.inputs, *self._columns.values()}
        roles = exported_config(self.directory).row_schema.columns if self._columns else []
        names = dict.fromkeys(name for row in rows for name in row if name not in known and name not in roles)
        return {name: did_you_mean(name, sorted(known)) for name in names}

    def call(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """score, ctr and confidence, float32 ``[rows]`` each, for arrays in the shapes of the signature."""
        tensors = {name: tf.constant(value, self.inputs[name].dtype) for name, value in inputs.items()}
        return {name: value.numpy() for name, value in self._signature(**tensors).items()}

    def predict(self, rows: list[dict[str, Any]], where: str = "rows") -> list[dict[str, float]]:
        """score, ctr and confidence of raw rows, whose keys are names of features or of the log's columns.

        An absent key is a missing value; unknown keys are ignored.

        Raises:
            UserError: a value has a type that the model does not accept. The message names ``where`` and the row.
        """
        if not rows:
            return []
        known = {*self.inputs, *self._columns.values()}
        for at, row in enumerate(rows):
            if row and not known & row.keys():
                hint = did_you_mean(next(iter(row)), sorted(known))
                raise UserError(f"{where}:{at + 1}", "names none of the model's inputs", hint)
        columns: dict[str, list[Any]] = {}
        for name, spec in self.inputs.items():
            column = self._columns.get(name, name)
            columns[name] = [
                _checked(row.get(name, row.get(column)), spec, f"{where}:{at + 1}", name) for at, row in enumerate(rows)
            ]
        answer = self.call(as_arrays(columns, self.inputs))
        return [{name: float(values[at]) for name, values in sorted(answer.items())} for at in range(len(rows))]


def _columns_of(model: Path) -> dict[str, str]:
    """The log column that each feature reads, if the model stores it."""
    path = model / PROVENANCE_FILE
    if not path.exists():
        return {}
    return dict(read_json(path, "model", "export it again")["columns"])


def _checked(value: Any, spec: Any, where: str, name: str) -> Any:
    kind, is_list = spec.dtype.name, spec.shape.rank == 2
    if value is None:
        return [] if is_list else {"string": "", "int64": MISSING_INT, "float32": None}[kind]
    takes: dict[str, Any] = {"string": str, "int64": int, "float32": (int, float)}
    values = value if is_list and isinstance(value, list) else [value]
    if is_list != isinstance(value, list) or any(not isinstance(v, takes[kind]) or isinstance(v, bool) for v in values):
        expected = f"a list of {kind}" if is_list else kind
        raise UserError(where, f"'{name}' is {json.dumps(value)[:80]}, the model takes {expected}", "correct the row")
    if kind == "int64" and any(not -(2**63) <= v < 2**63 for v in values):
        raise UserError(where, f"'{name}' is {json.dumps(value)[:80]}, the model takes int64", "correct the row")
    if kind == "float32" and any(isinstance(v, int) and abs(v) > 2**1000 for v in values):
        raise UserError(where, f"'{name}' is too large a number, the model takes float32", "correct the row")
    try:
        "".join(v for v in values if isinstance(v, str)).encode()
    except UnicodeEncodeError:
        raise UserError(
            where, f"'{name}' is {json.dumps(value)[:80]}, which is not Unicode text", "correct the row"
        ) from None
    return value


def read_rows(lines: Iterable[str], where: str) -> list[dict[str, Any]]:
    """Parse lines of JSON objects.

    Raises:
        UserError: a line is not a JSON object. The message names ``where`` and the line.
    """
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.strip())
        except ValueError as error:
            raise UserError(f"{where}:{number}", f"is not JSON ({error})", "write one JSON object a line") from None
        if not isinstance(row, dict):
            raise UserError(f"{where}:{number}", "is not a JSON object", 'write it as {"feature": value, ...}')
        rows.append(row)
    return rows
