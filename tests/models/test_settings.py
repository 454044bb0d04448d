"""The method's settings: presets, what overrides a preset, and invalid settings."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import ValidationError

from clsd.models.settings import PRESETS, ConfidenceSettings


def test_stable_is_the_defaults() -> None:
    stable = ConfidenceSettings(preset="stable")
    assert stable == ConfidenceSettings()
    expected = ("frozen", "teacher", "probability", 0, "mean", 1.0, 0.0, 1.0, 0.02, 5.0, "centre", "none")
    keys = ("teacher", "source", "scale", "refresh_steps", "normalise", "blend", "soften", "alpha", "eps", "a_max")
    keys = (*keys, "gate", "control")
    assert tuple(getattr(stable, key) for key in keys) == expected


def test_paper_is_the_literal_reading() -> None:
    paper = ConfidenceSettings(preset="paper")
    assert (paper.teacher, paper.normalise, paper.blend, paper.gate) == ("self", "none", math.inf, "centre")


def test_two_level_weighs_by_item_and_softens_by_a_moving_average() -> None:
    two = ConfidenceSettings(preset="two-level")
    assert (two.source, two.teacher, two.blend, two.soften, two.gate) == ("item", "ema", 3.0, 0.3, "off")
    assert two.separate_teacher and not two.uninformative


def test_plain_weighs_nothing() -> None:
    assert not ConfidenceSettings(preset="plain").weighted
    assert ConfidenceSettings().weighted


@pytest.mark.parametrize(
    ("preset", "key", "value"), [("paper", "blend", 2.0), ("paper", "teacher", "ema"), ("two-level", "soften", 0.0)]
)
def test_a_given_key_overrides_its_preset_and_no_other(preset: str, key: str, value: Any) -> None:
    settings = ConfidenceSettings.model_validate({"preset": preset, key: value})
    assert getattr(settings, key) == value
    for other in set(PRESETS[preset]) - {key}:
        assert getattr(settings, other) == PRESETS[preset][other]


def test_a_gate_that_is_off_may_be_written_as_yaml_reads_it() -> None:
    assert ConfidenceSettings.model_validate({"gate": False}).gate == "off"
    with pytest.raises(ValidationError):
        ConfidenceSettings.model_validate({"gate": True})


@pytest.mark.parametrize(
    "wrong",
    [
        {"preset": "plain", "control": "rce"},
        {"eps": 5.0},
        {"blend": -1},
        {"ema_decay": 1.0},
        {"lambda": 1},
        {"preset": "papper"},
        {"control": "shuffled"},
        {"tce_share": 1.0},
        {"rce_exponent": 0.0},
        {"soften": 1.5},
        {"scale": "odds", "gate": "calibration"},
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
        ({"source": "intensity"}, True),
        ({"source": "popularity"}, False),
        ({"source": "item"}, False),
        ({"control": "rce"}, False),
        ({"control": "tce"}, False),
    ],
)
def test_weights_are_blind_where_a_row_to_score_does_not_tell_its_own(settings: dict[str, Any], blind: bool) -> None:
    assert ConfidenceSettings(**settings).uninformative is blind


@pytest.mark.parametrize(
    ("settings", "separate"),
    [
        ({}, True),
        ({"teacher": "ema"}, True),
        ({"teacher": "previous"}, True),
        ({"teacher": "self"}, False),
        ({"teacher": "none"}, False),
        ({"source": "item"}, False),
        ({"source": "intensity"}, False),
        ({"source": "item", "soften": 0.1}, True),
        ({"control": "rce"}, False),
        ({"control": "tce"}, False),
        ({"control": "permuted"}, True),
    ],
)
def test_a_second_set_of_weights_is_kept_where_it_is_asked_alone(settings: dict[str, Any], separate: bool) -> None:
    assert ConfidenceSettings(**settings).separate_teacher is separate
