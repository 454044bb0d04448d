"""The variants of a comparison: named changes of the method's settings, and the controls."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from clsd.features.errors import UserError, did_you_mean
from clsd.models.settings import PRESETS
from clsd.pipeline.shared.config import Config
from clsd.pipeline.shared.config_file import parse_config
from clsd.pipeline.training.popularity import item_feature

PLAIN, CONFIGURED = "plain", "configured"
#: Directory of the warm-up beside the variants' directories; not the name of a variant.
WARMUP = "warmup"


class Variant(NamedTuple):
    """A variant: its changes of ``confidence``, and a short description for tables.

    With ``preset`` among the changes, the variant starts from that preset, otherwise from the config's ``confidence``. The
    warm-up is always the config's.
    """

    changes: Mapping[str, Any]
    about: str


#: The controls of every comparison, as far as the log has the columns that they need.
CONTROLS: dict[str, Variant] = {
    PLAIN: Variant({"teacher": "none", "gate": "off", "control": "none"}, "cross-entropy, no weights"),
    "constant": Variant({"control": "constant"}, "each click has the configured method's mean weight"),
    "permuted": Variant({"control": "permuted"}, "the configured weights, permuted among the clicks"),
    "permuted-raw": Variant(
        {"control": "permuted", "normalise": "none"}, "weights from raw scores, permuted among the clicks"
    ),
    "popularity": Variant(
        {"source": "popularity", "teacher": "self", "soften": 0.0},
        "the item's training clicks instead of the teacher's score",
    ),
    "rce": Variant(
        {"control": "rce", "source": "teacher", "gate": "off"},
        "R-CE: a click is weighted by p^b, a non-click by (1-p)^b",
    ),
    "tce": Variant(
        {"control": "tce", "source": "teacher", "gate": "off"}, "T-CE: the clicks with the largest loss are dropped"
    ),
    "oracle": Variant(
        {"source": "intensity", "teacher": "self", "soften": 0.0},
        "the click's own intensity instead of the teacher's score",
    ),
}

#: Other variants, by name.
METHODS: dict[str, Variant] = {
    CONFIGURED: Variant({}, "confidence as configured"),
    "stable": Variant({"preset": "stable"}, "the preset: frozen teacher, mean, blend 1, centred gate"),
    "paper": Variant({"preset": "paper"}, "the preset: self teacher, raw scores, no blend"),
    "two-level": Variant(
        {"preset": "two-level"}, "the preset: weights by the item's odds, targets softened by the teacher"
    ),
    "two-level-permuted": Variant(
        {"preset": "two-level", "control": "permuted"}, "two-level's weights, permuted among the clicks"
    ),
    "item": Variant(
        {"source": "item", "teacher": "self", "soften": 0.0, "gate": "off"},
        "weights by the item's odds alone, blend as configured",
    ),
    "soft": Variant(
        {"preset": "two-level", "source": "teacher", "blend": 0.0}, "no weights, targets softened by the moving average"
    ),
    "odds": Variant({"scale": "odds"}, "the teacher's odds instead of its probability"),
    "no-gate": Variant({"gate": "off"}, "the configured method without AdGate"),
    "gate-calibration": Variant(
        {"gate": "calibration"}, "the configured method, with the gate trained for calibration"
    ),
    "no-blend": Variant({"blend": math.inf}, "weights from the confidence alone"),
    "gradient-mass": Variant({"normalise": "gradient_mass"}, "the normaliser that keeps the mean prediction"),
    "ema": Variant({"teacher": "ema"}, "the moving average of the model as teacher"),
    "previous": Variant({"teacher": "previous"}, "the model one step ago as teacher"),
    "self": Variant({"teacher": "self"}, "the same forward pass as teacher"),
    "self-no-blend": Variant({"teacher": "self", "blend": math.inf}, "self teacher, weights from the confidence alone"),
}


def choose(config: Config, names: list[str], *, controls: bool = True) -> tuple[dict[str, Config], dict[str, str]]:
    """The config of each variant; and for each control that is impossible here, the reason.

    Args:
        config: the settings. ``confidence`` is the configured method; ``compare.variants`` holds the user's variants.
        names: variants besides the controls; empty for the configured method alone.
        controls: whether to include the controls.

    Raises:
        UserError: a name is unknown, a variant's settings are invalid, or the config does not weight clicks.
    """
    if not config.confidence.weighted:
        what = "weights no clicks, so there is nothing to compare with controls"
        raise UserError("confidence.teacher: none", what, "set confidence.preset: stable, or another")
    user_variants = {name: Variant(changes, "of the config") for name, changes in config.compare.variants.items()}
    for name, changes in config.compare.variants.items():
        where = f"compare.variants.{name}"
        if name in (WARMUP, *CONTROLS, *METHODS) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise UserError(where, "cannot be the name of a variant of yours", "choose another name")
        if "warmup_epochs" in changes or "warmup_steps" in changes:
            raise UserError(where, "changes the warm-up, which all variants share", "set it in confidence, for all")
    known = {**CONTROLS, **METHODS, **user_variants}
    wanted = list(dict.fromkeys([*(CONTROLS if controls else ()), *(names or [CONFIGURED])]))
    chosen, left_out = {}, {}
    for name in wanted:
        if name not in known:
            raise UserError(f"variant {name}", "is not known", did_you_mean(name, known))
        confidence = _confidence_of(config, known[name].changes)
        if reason := _impossible(config, confidence):
            if name not in CONTROLS or name in names:
                raise UserError(f"variant {name}", reason[0], reason[1])
            left_out[name] = f"{reason[0]}; {reason[1]}"
            continue
        chosen[name] = _config_of(config, name, confidence)
    for name in config.compare.references:
        if name not in known:
            raise UserError(f"compare.references: {name}", "is not a variant", did_you_mean(name, known))
    if not set(config.compare.references) & set(chosen):
        what = f"none of {', '.join(config.compare.references) or 'nothing'} is among the variants"
        raise UserError("compare.references", what, "name one with --variants, or leave out --no-controls")
    return chosen, left_out


def about(config: Config, name: str) -> str:
    """A short description of a variant."""
    if name in config.compare.variants:
        return ", ".join(f"{key}: {value}" for key, value in config.compare.variants[name].items())
    return {**CONTROLS, **METHODS}[name].about


def _confidence_of(config: Config, changes: Mapping[str, Any]) -> dict[str, Any]:
    before = config.confidence.model_dump(mode="python")
    start = before
    if "preset" in changes:
        start = {
            **PRESETS.get(changes["preset"], {}),
            **{key: before[key] for key in ("warmup_epochs", "warmup_steps")},
        }
    ungated = {} if config.row_schema.groups else {"gate": "off"}
    return {**start, **changes, **ungated}


def _impossible(config: Config, confidence: Mapping[str, Any]) -> tuple[str, str] | None:
    source = confidence.get("source", "teacher") if confidence.get("teacher") != "none" else "teacher"
    if source == "intensity" and not config.row_schema.intensity:
        return "the log has no intensity", "name its column as rows.intensity"
    if source in ("item", "popularity") and item_feature(config) is None:
        return "no feature with a vocabulary names the item", "name it as evaluate.item"
    return None


def _config_of(config: Config, name: str, confidence: Mapping[str, Any]) -> Config:
    settings = config.model_dump(mode="python", by_alias=True)
    settings["confidence"] = confidence
    # A comparison measures collapsed variants too, and marks them.
    settings["train"]["monitor"]["action"] = "warn"
    return parse_config(settings, f"compare.variants.{name}")
