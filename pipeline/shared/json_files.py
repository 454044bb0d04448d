"""The JSON files that clsd writes: complete, with a checksum of their content, and of known keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from clsd.features.errors import UserError
from clsd.pipeline.shared.checksums import CHECKSUM, with_checksum, without_checksum
from clsd.pipeline.shared.config_file import as_user_error
from clsd.pipeline.shared.files import write_text


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write indented JSON with its checksum, completely or not at all; NaN is refused."""
    sealed = with_checksum(content)
    write_text(path, json.dumps(sealed, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, what: str, hint: str, model: type[BaseModel] | None = None) -> dict[str, Any]:
    """Read what :func:`write_json` wrote.

    Args:
        path: the file.
        what: what the file's directory should be, such as "data set".
        hint: how to fix a fault.
        model: the file's keys and types; None for a file whose keys depend on the settings.

    Raises:
        UserError: the file is absent or damaged, holds an unknown key or lacks one, or its checksum differs.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=each_key_once)
    except FileNotFoundError:
        raise UserError(str(path.parent), f"is not a {what}: it has no {path.name}", hint) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(str(path), f"cannot be read ({error})", hint) from None
    if model is not None and isinstance(content, dict) and CHECKSUM in content:
        try:
            model.model_validate({key: value for key, value in content.items() if key != CHECKSUM})
        except ValidationError as error:
            found = as_user_error(error, str(path), model, "key")
            raise UserError(found.where, found.what, found.hint if "did you mean" in found.hint else hint) from None
    return without_checksum(content, path, hint)


def each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A hook of ``json.loads`` that refuses an object with a key that stands twice, of which JSON would take the last."""
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a key stands twice")
    return content
