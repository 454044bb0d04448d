"""Collapse: predicted from settings, found by metrics, reported in one line, without false alarms."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from clsd.features.errors import UserError
from clsd.models.settings import ConfidenceSettings
from clsd.pipeline.cli import main
from clsd.pipeline.shared.config import Config, MonitorSettings
from clsd.pipeline.shared.config_file import dump_config
from clsd.pipeline.shared.dataset import Dataset
from clsd.pipeline.training.collapse_monitor import CollapseMonitor, known_to_collapse
from clsd.pipeline.training.train import train

Make = Callable[..., Config]

HEALTHY = {"ctr": 0.2, "predicted_ctr": 0.19, "effective_clicks": 0.9, "largest_weight": 2.0, "mean_weight": 1.0}
#: No run keeps these bounds: whatever is looked at is found collapsed.
UNKEEPABLE = {"predicted_over_real": 1e9}
#: 19 steps an epoch; the first is the warm-up.
PAPER = {"confidence": {"preset": "paper"}, "train": {"epochs": 8, "monitor": {"window_steps": 19}}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, ""),
        ({"predicted_ctr": 0.0801}, ""),
        ({"predicted_ctr": 0.0798}, "the mean prediction is 0.399 of the CTR (train.monitor.predicted_over_real: 0.4)"),
        ({"predicted_ctr": 0.05}, "the mean prediction is 0.25 of the CTR (train.monitor.predicted_over_real: 0.4)"),
        ({"effective_clicks": 0.101}, ""),
        (
            {"effective_clicks": 0.07},
            "the weights leave 0.07 of the clicks effective (train.monitor.effective_clicks: 0.1)",
        ),
        ({"largest_weight": 0.101}, ""),
        ({"largest_weight": 0.05}, "the largest weight of a click is 0.05 (train.monitor.largest_weight: 0.1)"),
        # A window without clicks says nothing: all figures of clicks are 0 in it.
        ({"ctr": 0.0, "predicted_ctr": 0.0, "effective_clicks": 0.0, "largest_weight": 0.0}, ""),
    ],
)
def test_each_bound_by_its_figure(changes: dict[str, float], message: str) -> None:
    assert CollapseMonitor(MonitorSettings()).problem({**HEALTHY, **changes}) == message


def test_a_bound_of_zero_is_no_bound() -> None:
    off = MonitorSettings(predicted_over_real=0, effective_clicks=0, largest_weight=0)
    gone = dict.fromkeys(HEALTHY, 0.0) | {"ctr": 0.2}
    assert CollapseMonitor(off).problem(gone) == ""
    assert CollapseMonitor(MonitorSettings()).problem(gone) != ""


@pytest.mark.parametrize(
    ("confidence", "ctr", "expected"),
    [
        ({"preset": "paper"}, 0.2, True),
        ({"preset": "paper"}, 0.49, True),
        ({"preset": "paper"}, 0.5, False),  # the fixed point 2 - 1 / CTR is above 0 from here on
        ({"preset": "paper", "blend": 1.0}, 0.2, False),
        ({"preset": "paper", "teacher": "frozen"}, 0.2, False),
        ({"preset": "paper", "source": "item"}, 0.2, False),
        ({"preset": "paper", "control": "permuted"}, 0.2, False),
        ({"preset": "plain", "blend": math.inf}, 0.2, False),
        ({"preset": "stable"}, 0.2, False),
        ({"preset": "two-level"}, 0.2, False),
        *(({"teacher": t, "blend": math.inf}, 0.2, True) for t in ("self", "previous", "ema")),
        *(({"teacher": t, "blend": 100.0}, 0.2, False) for t in ("self", "previous", "ema")),
        *(({"teacher": "self", "blend": math.inf, "normalise": n}, 0.01, True) for n in ("mean", "gradient_mass")),
    ],
)
def test_which_settings_are_known_to_collapse(confidence: dict[str, Any], ctr: float, expected: bool) -> None:
    assert bool(known_to_collapse(ConfidenceSettings(**confidence), ctr)) is expected


def test_what_is_foretold_names_the_settings_the_ctr_and_the_mend() -> None:
    raw = known_to_collapse(ConfidenceSettings(preset="paper"), 0.043)
    assert "confidence.teacher: self with confidence.blend: .inf is known to collapse at a CTR of 4.3%" in raw
    assert "every row whose CTR is below one half" in raw
    assert "set confidence.blend: 1.0, or confidence.teacher: frozen" in raw
    mean = known_to_collapse(ConfidenceSettings(teacher="ema", blend=math.inf), 0.043)
    assert "confidence.teacher: ema" in mean
    assert "rows of low CTR" in mean


def test_the_paper_preset_is_warned_of_by_name_and_stopped_in_one_line(
    make_tiny: Make, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(dump_config(make_tiny(**PAPER)))
    command = ["train", "--config", config, "--dataset", tiny_dataset.directory, "--out", tmp_path / "run"]
    result = CliRunner().invoke(main, [str(word) for word in command], catch_exceptions=False)
    assert result.exit_code == 2
    lines = result.stderr.splitlines()
    (error,) = (at for at, line in enumerate(lines) if line.startswith("error: "))
    (warning,) = (at for at, line in enumerate(lines) if "is known to collapse at a CTR of" in line)
    assert "confidence.teacher: self with confidence.blend: .inf" in lines[warning]
    (first,) = (at for at, line in enumerate(lines) if line.startswith("epoch  1/8"))
    assert warning < first < error == len(lines) - 1
    message = re.fullmatch(
        r"error: train: the run collapsed by step (\d+): the mean prediction is (0\.\d+) of the CTR "
        r"\(train\.monitor\.predicted_over_real: 0\.4\); set confidence\.blend: 1\.0 or .*",
        lines[error],
    )
    assert message is not None, lines[error]
    assert int(message[1]) % 19 == 0  # a window of an epoch, counted from the end of the warm-up
    assert 0.2 < float(message[2]) < 0.4
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_run_that_is_only_warned_of_goes_on_and_carries_the_mark(
    make_tiny: Make, tiny_dataset: Dataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train_settings = {**PAPER["train"], "monitor": {"window_steps": 19, "action": "warn"}}
    config = make_tiny(confidence=PAPER["confidence"], train=train_settings)
    run = train(config, tiny_dataset, tmp_path / "run")
    assert run["epochs"] == 8
    assert re.fullmatch(r"the mean prediction is 0\.3\d* of the CTR \(train.*\) by step \d+", run["collapsed"])
    assert json.loads((tmp_path / "run" / "run.json").read_text())["collapsed"] == run["collapsed"]
    assert capfd.readouterr().err.count("the run collapsed: ") == 1  # once, though every later window has it too
    last = run["history"][-1]["train"]
    assert last["predicted_ctr"] < 0.3 * last["ctr"]


@pytest.mark.parametrize(
    "confidence",
    [{"preset": "stable"}, {"preset": "two-level"}, {"control": "permuted", "normalise": "none"}],
    ids=["stable", "two-level", "permuted-raw"],
)
def test_a_healthy_run_is_never_stopped(
    make_tiny: Make, tiny_dataset: Dataset, tmp_path: Path, confidence: dict[str, Any]
) -> None:
    monitor = {"window_steps": 1, "action": "stop"}
    config = make_tiny(confidence=confidence, train={"epochs": 4, "steps_per_call": 1, "monitor": monitor})
    run = train(config, tiny_dataset, tmp_path / "run")
    assert run["epochs"] == 4
    assert run["collapsed"] == ""


@pytest.mark.parametrize(("warmup_steps", "window", "step"), [(19, 1, 20), (19, 19, 38), (7, 4, 11), (0, 1, 1)])
def test_warm_up_is_not_looked_at_and_weighted_steps_are(
    make_tiny: Make, tiny_dataset: Dataset, tmp_path: Path, warmup_steps: int, window: int, step: int
) -> None:
    monitor = {"window_steps": window, **UNKEEPABLE}
    config = make_tiny(
        confidence={"warmup_steps": warmup_steps}, train={"epochs": 2, "steps_per_call": 1, "monitor": monitor}
    )
    with pytest.raises(UserError, match=rf"the run collapsed by step {step}: the mean prediction"):
        train(config, tiny_dataset, tmp_path / "run")


def test_a_run_without_weights_is_not_looked_at(make_tiny: Make, tiny_dataset: Dataset, tmp_path: Path) -> None:
    for name, confidence in (("plain", {"preset": "plain"}), ("warm-up", {"warmup_epochs": 1})):
        monitor = {"window_steps": 1, **UNKEEPABLE}
        config = make_tiny(confidence=confidence, train={"epochs": 1, "monitor": monitor})
        assert train(config, tiny_dataset, tmp_path / name)["collapsed"] == ""


def test_windows_go_on_over_the_end_of_an_epoch(make_tiny: Make, tiny_dataset: Dataset, tmp_path: Path) -> None:
    monitor = {"window_steps": 25, **UNKEEPABLE}
    config = make_tiny(train={"epochs": 4, "steps_per_call": 5, "monitor": monitor})
    with pytest.raises(UserError, match="the run collapsed by step 48:"):  # looked at after 5, 10, 15, 19 steps
        train(config, tiny_dataset, tmp_path / "run")


def test_a_run_too_short_for_a_window_is_looked_at_as_one(
    make_tiny: Make, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    config = make_tiny(train={"epochs": 3, "monitor": {"window_steps": 200, **UNKEEPABLE}})
    for _ in range(2):  # again: the collapsed run is not taken for a finished one
        with pytest.raises(UserError, match=r"the run collapsed by step 57: the mean prediction"):
            train(config, tiny_dataset, tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()


# 38 weighted steps, at most five at a time: looked at after 24 or 29 of them, with 14 or 9 to come.
@pytest.mark.parametrize(("window", "looks"), [(200, 1), (25, 1), (24, 2)])
def test_the_last_window_is_half_a_one_at_least(
    make_tiny: Make,
    tiny_dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    window: int,
    looks: int,
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(CollapseMonitor, "problem", lambda self, metrics: seen.append(metrics) or "")
    train(
        make_tiny(train={"epochs": 3, "steps_per_call": 5, "monitor": {"window_steps": window}}),
        tiny_dataset,
        tmp_path / "run",
    )
    assert len(seen) == looks
    assert all(metrics["ctr"] > 0 for metrics in seen)
