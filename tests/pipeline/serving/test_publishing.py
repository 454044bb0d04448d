"""Versions in the directory of a model server: publishing, withdrawing, and a killed export."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from clsd.features.errors import OutOfBoundsError, UserError
from clsd.pipeline.cli import main
from clsd.pipeline.evaluation.evaluate import evaluate, known_headline
from clsd.pipeline.serving.export import PublishingRequirements, export
from clsd.pipeline.serving.publishing import enforce, enforce_against, parse_requirement
from clsd.pipeline.shared.config import Config
from clsd.pipeline.shared.config_file import dump_config, parse_config
from clsd.pipeline.shared.dataset import Dataset
from clsd.pipeline.shared.headline_metrics import DIRECTED_METRICS, HEADLINE_METRICS
from clsd.pipeline.shared.json_files import write_json
from clsd.pipeline.shared.model_versions import (
    DONE_FILE,
    MODEL_FILE,
    PROVENANCE_FILE,
    keep_newest,
    newest_version,
    read_metadata,
    versions_in,
    withdraw,
)
from clsd.pipeline.training.checkpoints import read_run

METRICS = {"auc": 0.71, "log_loss": 0.31, "predicted_over_real": 1.1}


def _versions(directory: Path, *numbers: int) -> Path:
    for number in numbers:
        (directory / str(number)).mkdir(parents=True)
        (directory / str(number) / MODEL_FILE).write_text(str(number))
    return directory


# ---------------------------------------------------------------- gates


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("auc>=0.71", True),
        ("auc > 0.71", False),
        ("log_loss<=0.31", True),
        ("log_loss<3e-1", False),
        ("predicted_over_real<1.2", True),
        ("gauc>=0", False),  # undefined for this model
    ],
)
def test_a_bound_is_held_or_refused_with_what_the_metric_is(text: str, holds: bool) -> None:
    requirement = parse_requirement(text, HEADLINE_METRICS)
    if holds:
        enforce(METRICS, [requirement])
        return
    with pytest.raises(OutOfBoundsError, match=r"--require .*: .*; nothing was published") as refused:
        enforce(METRICS, [requirement])
    assert refused.value.exit_code == 3
    assert requirement.metric in str(refused.value)


@pytest.mark.parametrize("text", ["auc", "auc=0.7", "auc>=high", "acu>=0.7", ">=0.7", "auc>=0.7.1"])
def test_what_is_no_bound_is_a_mistake(text: str) -> None:
    with pytest.raises(UserError, match="--require") as error:
        parse_requirement(text, HEADLINE_METRICS)
    assert error.value.exit_code == 2
    assert ("did you mean 'auc'" in str(error.value)) == (text == "acu>=0.7")


def test_worse_than_the_version_in_service_is_by_a_margin_and_in_the_metrics_own_direction() -> None:
    margins = {"auc": 0.01, "log_loss": 0.01, "gauc": 0.0}
    enforce_against(METRICS, {"auc": 0.719, "log_loss": 0.301}, margins, "v")
    enforce_against(
        {**METRICS, "gauc": 0.5}, {"auc": 0.5, "log_loss": 0.9}, margins, "v"
    )  # better; and one that is new
    with pytest.raises(OutOfBoundsError, match=r"gauc is undefined for this model, and 0\.9 for the version served"):
        enforce_against(METRICS, {"gauc": 0.9}, margins, "v")
    with pytest.raises(OutOfBoundsError, match=r"auc 0\.71 is worse than 0\.73"):
        enforce_against(METRICS, {"auc": 0.73}, margins, "v")
    with pytest.raises(OutOfBoundsError, match=r"log_loss 0\.31 is worse than 0\.29"):
        enforce_against(METRICS, {"log_loss": 0.29}, margins, "v")


def test_every_metric_with_a_margin_is_one_that_is_measured(settings: dict[str, Any]) -> None:
    assert set(DIRECTED_METRICS) < set(HEADLINE_METRICS)
    with pytest.raises(UserError, match="margins: 'predicted_over_real' is not a metric with a direction"):
        parse_config({**settings, "export": {"margins": {"predicted_over_real": 0.1}}}, "config")


def test_an_export_that_does_not_pass_publishes_nothing(
    small_dataset: Dataset, small_run: Path, small_config: Config, tmp_path: Path
) -> None:
    evaluate(small_dataset, small_run, tmp_path / "evaluation", settings=small_config.evaluate)
    metrics = known_headline(tmp_path / "evaluation", small_run)
    assert metrics is not None and 0.4 < metrics["auc"] < 0.8
    models = tmp_path / "models"

    def publish(version: int, **gates: Any) -> Path:
        return export(
            small_dataset, small_run, models, version=version, requirements=PublishingRequirements(metrics, **gates)
        )

    with pytest.raises(OutOfBoundsError, match=r"--require auc>=0.99: the model has auc 0\.\d+; nothing was published"):
        publish(1, require=["auc>=0.99"])
    assert not models.exists() or not list(models.iterdir())
    with pytest.raises(UserError, match="holds no exported model"):
        publish(1, against=tmp_path / "elsewhere")
    publish(1, require=["auc>=0.4", "log_loss<1"], against=models)  # the first has none to be held against
    publish(2, against=models)  # as good as itself
    metadata = read_metadata(models / "2", "")
    assert metadata["metrics"] == metrics
    metadata["metrics"]["auc"] += 0.1
    write_json(models / "2" / PROVENANCE_FILE, metadata)
    with pytest.raises(OutOfBoundsError, match=r"--against .*2: auc 0\.\d+ is worse than 0\.\d+ of the version served"):
        publish(3, against=models)
    with pytest.raises(UserError, match="needs metrics of the model; run `clsd evaluate` first"):
        export(small_dataset, small_run, models, version=3, requirements=PublishingRequirements(require=["auc>=0"]))
    assert [version.name for version in versions_in(models)] == ["1", "2"]
    export(small_dataset, small_run, models, version=4, keep=2)
    assert sorted(entry.name for entry in models.iterdir()) == [".lock", "2", "4"]
    with pytest.raises(UserError, match="3: is lower than version 4, so no server would load it"):
        export(small_dataset, small_run, models, version=3)
    assert (models / "4" / DONE_FILE).exists()


def test_the_command_leaves_with_3_where_a_bound_is_not_held_and_with_2_where_it_is_none(
    small_dataset: Dataset, small_run: Path, small_config: Config, tmp_path: Path
) -> None:
    evaluate(small_dataset, small_run, tmp_path / "evaluation", settings=small_config.evaluate)
    (tmp_path / "c.yaml").write_text(dump_config(small_config))
    command = ["export", "--config", str(tmp_path / "c.yaml"), "--dataset", str(small_dataset.directory), "--run"]
    command += [str(small_run), "--out", str(tmp_path / "models"), "--evaluation", str(tmp_path / "evaluation")]
    for bound, code in (("auc>=0.99", 3), ("auc>=", 2)):
        done = CliRunner().invoke(main, [*command, "--require", bound])
        assert done.exit_code == code and done.stderr.startswith("error: --require"), done.stderr
    assert not (tmp_path / "models").exists()
    # How to export is what the command's own config says, and what to is the run's.
    done = CliRunner().invoke(
        main, [*command, "--set", "export.candidates=[price]", "--require", "auc>0.3", "--version", "7"]
    )
    assert done.exit_code == 0, done.stderr
    assert read_metadata(tmp_path / "models" / "7", "")["export"]["candidates"] == ["price"]


def test_metrics_of_another_run_are_none(
    small_dataset: Dataset, small_run: Path, small_config: Config, tmp_path: Path
) -> None:
    assert known_headline(tmp_path, small_run) is None
    evaluate(small_dataset, small_run, tmp_path / "evaluation", settings=small_config.evaluate)
    other = Path(shutil.copytree(small_run, tmp_path / "run"))
    write_json(other / "run.json", {**read_run(other, ""), "fingerprint": "another"})
    assert known_headline(tmp_path / "evaluation", other) is None


# ---------------------------------------------------------------- versions


def test_the_newest_versions_stay(tmp_path: Path) -> None:
    _versions(tmp_path, 9, 10, 100)
    (tmp_path / "notes").mkdir()
    assert [version.name for version in keep_newest(tmp_path, 2)] == ["9"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["10", "100", "notes"]
    assert keep_newest(tmp_path, 2) == keep_newest(tmp_path, 5) == []


def test_rolling_back_takes_the_newer_versions_out_of_sight(tmp_path: Path) -> None:
    _versions(tmp_path, 9, 10, 100)
    served, gone = withdraw(tmp_path)
    assert (served.name, [version.name for version in gone]) == ("10", ["withdrawn-100"])
    assert newest_version(tmp_path).name == "10"
    (tmp_path / "withdrawn-100").rename(tmp_path / "100")  # the way back
    served, gone = withdraw(tmp_path, 9)
    # The older first: as long as the newest is there, a server loads none in between.
    assert (served.name, [version.name for version in gone]) == ("9", ["withdrawn-10", "withdrawn-100"])
    assert (tmp_path / "withdrawn-10" / MODEL_FILE).read_text() == "10"
    for to, message in ((None, "has no version before the newest"), (9, "serves 9 already"), (8, "has no version 8")):
        with pytest.raises(UserError, match=message):
            withdraw(tmp_path, to)


def test_rolling_back_by_the_command(tmp_path: Path) -> None:
    _versions(tmp_path, 1, 2)
    done = CliRunner().invoke(main, ["rollback", str(tmp_path)])
    assert (done.exit_code, done.stdout.strip()) == (0, str(tmp_path / "1"))
    done = CliRunner().invoke(main, ["rollback", str(tmp_path)])
    assert done.exit_code == 2
    assert "has no version before the newest" in done.stderr


def test_what_was_taken_out_of_service_is_not_exported_again(
    small_dataset: Dataset, small_run: Path, small_config: Config, tmp_path: Path
) -> None:
    _versions(tmp_path, 1)
    export(small_dataset, small_run, tmp_path, version=2)
    withdraw(tmp_path)
    with pytest.raises(UserError, match="withdrawn-2: is a withdrawn version of this run; rename it"):
        export(small_dataset, small_run, tmp_path, version=3)
    assert newest_version(tmp_path).name == "1"
    other = small_config.export.model_copy(update={"candidates": ["price"]})
    assert export(small_dataset, small_run, tmp_path, version=3, settings=other).name == "3"


@pytest.mark.parametrize("moment", ["run_canary", "golden_rows"])
def test_an_export_that_is_killed_leaves_nothing_that_a_server_would_load(
    small_dataset: Dataset, small_run: Path, tmp_path: Path, moment: str
) -> None:
    """SIGKILL in a process of its own, where the SavedModel is written already; the next export is as if nothing had been."""
    models = _versions(tmp_path / "models", 1)
    script = f"""
        import os, signal
        from pathlib import Path
        from clsd.pipeline.serving import export as module
        from clsd.pipeline.shared.dataset import Dataset

        module.{moment} = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)
        module.export(Dataset.load("{small_dataset.directory}"), Path("{small_run}"), Path("{models}"), version=2)
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], check=False, capture_output=True, env=environment
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = [entry.name for entry in models.iterdir() if entry.name not in ("1", ".lock")]
    assert left and all(not name.isdigit() for name in left)
    assert newest_version(models).name == "1"
    assert export(small_dataset, small_run, models, version=2) == newest_version(models)
    assert sorted(entry.name for entry in models.iterdir()) == [".lock", "1", "2"]
