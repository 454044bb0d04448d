"""Reads, checks and writes config files: YAML to :class:`clsd.pipeline.shared.config.Config` and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from clsd.features.errors import UserError, did_you_mean
from clsd.features.paths import as_path
from clsd.pipeline.shared.config import Config
from clsd.pipeline.shared.yaml_files import load_yaml


def load_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Read and check a YAML file.

    Args:
        path: path or address of the file.
        overrides: such as ``"train.epochs=3"``; the value is parsed as YAML.

    Raises:
        UserError: the file is missing or not YAML, or a setting is unknown or wrong.
    """
    path = as_path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            str(path), f"cannot be read ({_reason(error)})", "give the path of a YAML file with --config"
        ) from None
    return parse_yaml(text, str(path), overrides)


def parse_yaml(text: str, where: str, overrides: list[str] | None = None) -> Config:
    """As :func:`load_config`, for a text; errors name ``where``."""
    raw = load_yaml(text, where)
    if not isinstance(raw, dict):
        raise UserError(where, "is not a mapping of settings", "see configs/ for examples")
    for override in overrides or []:
        _override(raw, override)
    return parse_config(raw, where)


def parse_config(raw: dict[str, Any], where: str) -> Config:
    """Check settings from any source; errors name ``where``."""
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise as_user_error(error, where, Config) from None


def as_user_error(error: ValidationError, where: str, model: Any, noun: str = "setting") -> UserError:
    """The first problem that pydantic found, as one line with the setting and a hint. ``noun`` is what a key is called."""
    problem = error.errors()[0]
    # The path also holds the tags of unions of features, which the user did not write.
    path = [p for p in problem["loc"] if p not in ("categorical", "bag", "sequence", "numeric")]
    setting = ".".join(str(part) for part in path)
    if problem["type"] == "extra_forbidden":
        known = _keys_at(model, path[:-1])
        hint = did_you_mean(str(path[-1]), known) if known else "remove it"
        return UserError(f"{where}: {setting}", f"unknown {noun}", hint)
    if problem["type"] == "missing":
        return UserError(f"{where}: {setting}", "is missing", "add it")
    message = str(problem["msg"]).removeprefix("Value error, ")
    given = problem.get("input")
    shown = f" (found {given!r})" if isinstance(given, (str, int, float, bool)) else ""
    what, _, advice = message.partition("; ")
    return UserError(f"{where}: {setting}" if setting else where, what + shown, advice or f"correct the {noun}")


def _keys_at(model: Any, path: list[Any]) -> list[str]:
    """Names that are allowed at a path of the settings; empty if unknown."""
    models = [model]
    for part in path:
        if not isinstance(part, int):
            fields = [field for m in models for name, field in m.model_fields.items() if part in (name, field.alias)]
            models = [nested for field in fields for nested in _models_in(field.annotation)]
    return list(dict.fromkeys(field.alias or name for m in models for name, field in m.model_fields.items()))


def _models_in(annotation: Any) -> list[Any]:
    """The settings classes in an annotation, such as all members of a list of a union."""
    if hasattr(annotation, "model_fields"):
        return [annotation]
    return [result for inner in get_args(annotation) for result in _models_in(inner)]


def _override(raw: dict[str, Any], override: str) -> None:
    path, equals, value = override.partition("=")
    if not equals:
        raise UserError(f"--set {override}", "has no '='", "write it as --set train.epochs=3")
    *parents, last = path.split(".")
    if not all([*parents, last]):
        raise UserError(f"--set {override[:80]}", "names no setting", "write it as --set train.epochs=3")
    at = raw
    for parent in parents:
        at = at.setdefault(parent, {})
        if not isinstance(at, dict):
            raise UserError(
                f"--set {override}", f"'{parent}' is not a group of settings", "see configs/ for their names"
            )
    at[last] = load_yaml(value, f"--set {override[:80]}")


def dump_config(config: Config) -> str:
    """The resolved config as YAML, with every default; reading it back gives an equal config.

    >>> rows = {"features": [{"name": "item", "kind": "categorical"}], "timestamp": "time"}
    >>> config = parse_config({"name": "x", "logs": {}, "rows": rows, "confidence": {"gate": "off"}}, "example")
    >>> parse_config(yaml.safe_load(dump_config(config)), "example") == config
    True
    """
    return yaml.safe_dump(config.model_dump(mode="python", by_alias=True), sort_keys=False, allow_unicode=True)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or type(error).__name__
