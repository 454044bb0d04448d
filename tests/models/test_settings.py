"""The method's settings: what a preset is, what a preset yields to, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import ValidationError

from models.settings import PRESETS, ConfidenceSettings


def test_stable_is_the_defaults() -> None:
    stable = ConfidenceSettings(preset="stable")
    assert stable == ConfidenceSettings()
    expected = ("frozen", 0, "mean", 1.0, 1.0, 0.02, 5.0, "centre", "none")
    keys = ("teacher", "refresh_steps", "normalise", "blend", "alpha", "eps", "a_max", "gate", "control")
    assert tuple(getattr(stable, key) for key in keys) == expected


def test_paper_is_the_literal_reading() -> None:
    paper = ConfidenceSettings(preset="paper")
    assert (paper.teacher, paper.normalise, paper.blend, paper.gate) == ("self", "none", math.inf, "centre")


def test_plain_weighs_nothing() -> None:
    assert not ConfidenceSettings(preset="plain").weighted
    assert ConfidenceSettings().weighted


@pytest.mark.parametrize(("preset", "key", "value"), [("paper", "blend", 2.0), ("paper", "teacher", "ema")])
def test_a_given_key_overrides_its_preset_and_no_other(preset: str, key: str, value: Any) -> None:
    settings = ConfidenceSettings.model_validate({"preset": preset, key: value})
    assert getattr(settings, key) == value
    for other in set(PRESETS[preset]) - {key}:
        assert getattr(settings, other) == PRESETS[preset][other]


@pytest.mark.parametrize(
    "wrong",
    [
        {"eps": 5.0},
        {"blend": -1},
        {"ema_decay": 1.0},
        {"lambda": 1},
        {"preset": "papper"},
        {"control": "shuffled"},
        {"tce_share": 1.0},
        {"rce_exponent": 0.0},
    ],
)
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ConfidenceSettings.model_validate(wrong)


@pytest.mark.parametrize(
    ("settings", "blind"),
    [
        ({}, False),
        ({"control": "constant"}, True),
        ({"control": "permuted"}, True),
        ({"teacher": "intensity"}, True),
        ({"teacher": "popularity"}, False),
        ({"control": "rce"}, False),
        ({"control": "tce"}, False),
        ({"preset": "plain", "control": "constant"}, False),
    ],
)
def test_weights_are_blind_where_a_row_to_score_does_not_tell_its_own(settings: dict[str, Any], blind: bool) -> None:
    assert ConfidenceSettings(**settings).blind is blind
