"""Score raw rows with an exported model, as a model server would (`clsd predict`)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from clsd.features.errors import UserError, did_you_mean
from clsd.features.paths import as_path
from clsd.features.schema import MISSING_INT
from clsd.features.tf_runtime import register_file_systems, tf
from clsd.pipeline.preprocess.parsing import is_deep
from clsd.pipeline.serving.serving_inputs import as_arrays
from clsd.pipeline.shared.json_files import each_key_once
from clsd.pipeline.shared.loaders import load_saved_model
from clsd.pipeline.shared.model_versions import exported_config, newest_version, verified_metadata

_HINT = "copy it again, or export it again"
#: Brackets that any row may have.
_FEW_BRACKETS = 100


class Predictor:
    """An exported model that scores raw rows. Its files are compared with their checksums before they are loaded.

    Args:
        directory: a version, or a directory of versions, of which the newest is used.

    Raises:
        UserError: there is no version, clsd did not export it, or a file of it is missing or altered.
    """

    def __init__(self, directory: str | Path) -> None:
        directory = as_path(directory)
        self.directory = newest_version(directory)
        register_file_systems([directory])
        metadata = verified_metadata(self.directory, _HINT)
        self._loaded = load_saved_model(self.directory, _HINT)
        self._signature = self._loaded.signatures["serving_default"]
        self.inputs: dict[str, Any] = self._signature.structured_input_signature[1]
        self._columns = metadata["columns"]
        self._roles = set(exported_config(self.directory).row_schema.columns)

    def unknown(self, rows: list[dict[str, Any]]) -> dict[str, str]:
        """Names in the rows that neither the model nor its log knows, each with a suggestion."""
        known = {*self.inputs, *self._columns.values()}
        names = dict.fromkeys(name for row in rows for name in row if name not in known and name not in self._roles)
        return {name: did_you_mean(name, sorted(known)) for name in names}

    def call(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """score, ctr and confidence, float32 ``[rows]`` each, for arrays in the shapes of the signature."""
        tensors = {name: tf.constant(value, self.inputs[name].dtype) for name, value in inputs.items()}
        return {name: value.numpy() for name, value in self._signature(**tensors).items()}

    def predict(self, rows: list[dict[str, Any]], where: str = "rows", first: int = 1) -> list[dict[str, float]]:
        """score, ctr and confidence of raw rows, whose keys are names of features or of the log's columns.

        An absent key is a missing value; unknown keys are ignored. ``first`` is the number of the first row, for messages.

        Raises:
            UserError: a value has a type that the model does not accept. The message names ``where`` and the row.
        """
        if not rows:
            return []
        known = {*self.inputs, *self._columns.values()}
        for at, row in enumerate(rows, first):
            if row and not known & row.keys():
                hint = did_you_mean(next(iter(row)), sorted(known))
                raise UserError(f"{where}:{at}", "names none of the model's inputs", hint)
        columns: dict[str, list[Any]] = {}
        for name, spec in self.inputs.items():
            column = self._columns.get(name, name)
            columns[name] = [
                checked_value(
                    row.get(name, row.get(column)), spec.dtype.name, spec.shape.rank == 2, f"{where}:{at}", name
                )
                for at, row in enumerate(rows, first)
            ]
        answer = self.call(as_arrays(columns, self.inputs))
        return [{name: float(values[at]) for name, values in sorted(answer.items())} for at in range(len(rows))]


def checked_value(value: Any, dtype: str, is_list: bool, where: str, name: str) -> Any:
    """A value of a request as the model takes it; both `clsd predict` and `clsd skew` read requests so.

    Args:
        value: the value, as JSON has it; None is missing.
        dtype: of the model's input: string, int64 or float32.
        is_list: whether the input takes a list.
        where, name: for messages: the row, and the input.

    Raises:
        UserError: the model does not take such a value.
    """
    missing = {"string": "", "int64": MISSING_INT, "float32": None}[dtype]
    if value is None:
        return [] if is_list else missing
    takes: dict[str, Any] = {"string": str, "int64": int, "float32": (int, float)}
    values = [_whole(v) if dtype == "int64" else v for v in (value if is_list and isinstance(value, list) else [value])]
    shown = f"'{name}' is {json.dumps(value)[:80]}"
    known = [v for v in values if v is not None or not is_list]
    if is_list != isinstance(value, list) or any(not isinstance(v, takes[dtype]) or isinstance(v, bool) for v in known):
        expected = f"a list of {dtype}" if is_list else dtype
        raise UserError(where, f"{shown}, the model takes {expected}", "correct the row")
    if dtype == "int64" and any(not -(2**63) <= v < 2**63 for v in known):
        raise UserError(where, f"{shown}, the model takes int64", "correct the row")
    if dtype == "float32" and any(isinstance(v, int) and abs(v) > 2**1000 for v in known):
        raise UserError(where, f"'{name}' is too large a number, the model takes float32", "correct the row")
    try:
        "".join(v for v in known if isinstance(v, str)).encode()
    except UnicodeEncodeError:
        raise UserError(where, f"{shown}, which is not Unicode text", "correct the row") from None
    return [missing if v is None else v for v in values] if is_list else values[0]


def _whole(value: Any) -> Any:
    """12.0 as 12, as in the log; anything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def read_rows(lines: Iterable[str], where: str) -> Iterator[dict[str, Any]]:
    """Parse lines of JSON objects, one at a time.

    Raises:
        UserError: a line is not a JSON object. The message names ``where`` and the line.
    """
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            if line.count("[") + line.count("{") > _FEW_BRACKETS and is_deep(line.encode(errors="replace")):
                raise ValueError("nested too deeply")
            row = json.loads(line.strip(), object_pairs_hook=each_key_once)
        except ValueError as error:
            raise UserError(f"{where}:{number}", f"is not JSON ({error})", "write one JSON object a line") from None
        if not isinstance(row, dict):
            raise UserError(f"{where}:{number}", "is not a JSON object", 'write it as {"feature": value, ...}')
        yield row
