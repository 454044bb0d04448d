"""Write docs/configuration.md from the settings classes: `make docs`. A test holds the file against them."""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from clsd.pipeline.shared.config import Config

TARGET = Path(__file__).with_name("configuration.md")
_HEAD = """# Settings

One YAML file describes a whole run. Unknown keys are errors. This page is generated from the settings classes by `make docs`.
"""


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [result for inner in get_args(annotation) for result in _models_in(inner)]


def _kind(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(inner[0])
    if origin is Literal:
        return " \\| ".join(f"`{value}`" for value in inner)
    if origin in (Union, types.UnionType):
        return " \\| ".join("null" if part is type(None) else _kind(part) for part in inner)
    if origin is list:
        return f"list of {_kind(inner[0])}" if not _models_in(inner[0]) else "list, see below"
    if _models_in(annotation):
        return "see below"
    return {str: "text", int: "whole number", float: "number", bool: "true \\| false"}.get(annotation, "mapping")


def _default(field: Any) -> str:
    if field.default is PydanticUndefined:
        return "**required**"
    if isinstance(field.default, BaseModel):
        return ""
    if field.default in ("", [], {}):
        return "none"
    if field.default == '"':
        return '`"`'
    if isinstance(field.default, list) and "" in field.default:
        return f"`{json.dumps(field.default)}`"
    return f"`{json.dumps(field.default)}`".replace('"', "")


def _section(path: str, model: type[BaseModel]) -> list[str]:
    """The section of a settings class, and those of the classes inside it."""
    about = " ".join((model.__doc__ or "").split("\n\n")[0].split())
    lines = [
        "",
        f"## {path}" if path else "## The top level",
        "",
        about,
        "",
        "| key | value | default | |",
        "|---|---|---|---|",
    ]
    inner: list[str] = []
    for name, field in model.model_fields.items():
        key = field.alias or name
        if name == "max_length" and get_origin(field.annotation) is Literal:
            continue
        lines.append(f"| `{key}` | {_kind(field.annotation)} | {_default(field)} | {field.description or ''} |")
        models = _models_in(field.annotation)
        for nested in models:
            where = f"{path}.{key}" if path else key
            if len(models) > 1:
                kind = get_args(nested.model_fields["kind"].annotation)[0]
                where += f", kind: {kind}"
            inner += _section(where, nested)
    return lines + inner


def render() -> str:
    """The whole page."""
    return _HEAD + "\n".join(_section("", Config)) + "\n"


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
