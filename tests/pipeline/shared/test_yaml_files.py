"""YAML that a user wrote or was given: read within bounds, or refused in one line."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, get_args

import pytest
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel

from clsd.features.errors import UserError
from clsd.models.backbones.registry import build_backbone
from clsd.models.settings import ModelSettings
from clsd.pipeline.shared.config import Config
from clsd.pipeline.shared.config_file import load_config, parse_config
from clsd.pipeline.shared.yaml_files import MAX_DEPTH, load_yaml

_BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 10)}]\n" for i in range(9)
)
_CHAIN = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 2 * MAX_DEPTH))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("day: 2026-13-45", r"c\.yaml:1: is not YAML \(month must be in 1\.\.12\)"),
        ("a: 1\nb: " + "9" * 5000, r"c\.yaml:2: is not YAML \(Exceeds the limit"),
        ("b: 0x" + "f" * 5000, r"c\.yaml:1: is not YAML \(an integer of more than 64 bits\)"),
        ("a: " + "[" * 5000 + "]" * 5000, rf"c\.yaml:1: is not YAML \(nested more than {MAX_DEPTH} levels deep\)"),
        (_BOMB, r"c\.yaml:6: holds more than 200,000 values after its aliases are expanded"),
        (_CHAIN, rf"is nested more than {MAX_DEPTH} levels deep after its aliases are expanded"),
        ("a: &a [*a]", r"c\.yaml:1: holds itself through an alias"),
        ("a: 1\nb: 2\na: 3", r"c\.yaml:3: 'a' stands twice; remove one of them"),
        ("a:\n  b: 1\n  b: 1", r"c\.yaml:3: 'b' stands twice"),
        ("? [1, 2]\n: 3", r"c\.yaml:1: is not YAML \(found unhashable key\)"),
        ("a: !!python/object/apply:os.system [ls]", r"c\.yaml:1: is not YAML \(could not determine a constructor"),
        ("a: \x00", r"c\.yaml: is not YAML \(unacceptable character"),
        ("x" * (5 << 20), r"c\.yaml: has more than 4 MiB"),
        ("x: [" + "a," * 60_000 + "a]", r"c\.yaml:1: is not YAML \(more than 50,000 values\)"),
        ("x: !!timestamp abc", r"c\.yaml:1: is not YAML"),
        ("x: !!bool maybe", r"c\.yaml:1: is not YAML"),
    ],
)
def test_what_cannot_be_is_one_line(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        load_yaml(text, "c.yaml")
    assert "\n" not in str(error.value)


def test_what_can_be_is_read() -> None:
    assert load_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: [*a, *a]", "c.yaml") == {
        "a": {"x": 1},
        "b": {"x": 1, "y": 2},
        "c": [{"x": 1}, {"x": 1}],
    }
    assert load_yaml("", "c.yaml") is None


def _fields(model: Any, path: str = "") -> list[tuple[str, Any]]:
    found = []
    for name, field in model.model_fields.items():
        found.append((f"{path}{name}", field))
        for inner in _models(field.annotation):
            found += _fields(inner, f"{path}{name}.")
    return found


def _models(annotation: Any) -> list[Any]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models(inner)]


def test_every_count_has_an_upper_bound_and_no_other_number_is_infinite(settings: dict[str, Any]) -> None:
    counts = [(path, field) for path, field in _fields(Config) if field.annotation in (int, int | None)]
    assert len(counts) > 30
    for path, field in counts:
        bounds = [bound for bound in field.metadata if isinstance(bound, Le | Lt | Ge | Gt)]
        assert any(isinstance(bound, Le | Lt) for bound in bounds), path
    for path in ("train.l2", "train.checkpoint_minutes", "preprocess.stalled_minutes", "confidence.a_max"):
        group, name = path.split(".")
        with pytest.raises(UserError, match=rf"{path}: Input should be a finite number"):
            parse_config({**settings, group: {**settings.get(group, {}), name: math.inf}}, "c.yaml")
    assert parse_config({**settings, "confidence": {"blend": math.inf}}, "c.yaml").confidence.blend == math.inf


def test_a_length_that_no_memory_holds_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    settings["rows"]["features"][6]["max_length"] = 99_999_999_999
    with pytest.raises(UserError, match=r"max_length: Input should be less than or equal to 65536 .found 99999999999."):
        parse_config(settings, "c.yaml")
    (tmp_path / "c.yaml").write_text(_BOMB)
    with pytest.raises(UserError, match="after its aliases are expanded"):
        load_config(tmp_path / "c.yaml")
    model = ModelSettings(options={"hidden_units": [16, 10**9]})
    with pytest.raises(UserError, match=r"model\.options: holds 1000000000, more than 65536; correct it"):
        build_backbone(model, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"dropout": math.inf}, "holds inf, which is not finite"),
        ({"hidden_units": [8] * 3000}, "holds 3000 values in a row"),
    ],
)
def test_odd_options_of_a_backbone_are_refused(options: dict[str, Any], what: str) -> None:
    with pytest.raises(UserError, match=rf"model\.options: {what}"):
        build_backbone(ModelSettings(options=options), None)  # type: ignore[arg-type]


@pytest.mark.parametrize("override", ["=3", ".=1", "a..b=1"])
def test_an_override_without_a_name_says_so(override: str, settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("name: x")
    with pytest.raises(UserError, match=r"names no setting; write it as --set train\.epochs=3"):
        load_config(tmp_path / "c.yaml", [override])
