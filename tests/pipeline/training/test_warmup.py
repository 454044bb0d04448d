"""A shared warm-up: each run that starts from it equals, bit for bit, a run with its own warm-up."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clsd.features.errors import UserError
from clsd.pipeline.shared.config import Config
from clsd.pipeline.shared.dataset import Dataset
from clsd.pipeline.training.train import train, warm_up

Make = Callable[..., Config]
Same = Callable[[Path, Path], bool]
Stopped = Callable[[int, Callable[[], Any]], None]
StateOf = Callable[[Path], dict[str, Any]]

#: 19 steps an epoch.
NONE, WITHIN, AT_AN_END, BEYOND = {"warmup_steps": 0}, {"warmup_steps": 7}, {"warmup_epochs": 1}, {"warmup_steps": 25}
TWO_EPOCHS, ONE_AND_A_HALF = {"warmup_epochs": 2}, {"warmup_epochs": 1.5}

TRAIN = {"epochs": 3, "early_stopping": {"metric": "auc", "patience": 1}, "monitor": {"action": "warn"}}


def _files(directory: Path) -> dict[str, tuple[int, bytes]]:
    files = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    return {str(path.relative_to(directory)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.fixture(scope="module")
def warmups(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: Dataset) -> Callable[[Config, Any], Path]:
    """The shared warm-up of that length, made once by the first config that asks for it."""
    made: dict[str, Path] = {}

    def get(config: Config, length: Any) -> Path:
        if str(length) not in made:
            made[str(length)] = tmp_path_factory.mktemp("warmup") / "warmup"
            warm_up(config, tiny_dataset, made[str(length)])
        return made[str(length)]

    return get


@pytest.mark.parametrize(
    ("confidence", "length"),
    [
        ({"preset": "stable"}, NONE),
        ({"preset": "stable"}, WITHIN),
        ({"preset": "stable"}, TWO_EPOCHS),
        ({"preset": "paper"}, BEYOND),
        ({"teacher": "ema"}, ONE_AND_A_HALF),
        ({"control": "permuted", "normalise": "none"}, AT_AN_END),
        ({"preset": "two-level"}, WITHIN),
    ],
    ids=lambda value: " ".join(map(str, value.values())),
)
def test_a_run_from_a_shared_warm_up_ends_as_one_that_did_its_own(
    make_tiny: Make,
    tiny_dataset: Dataset,
    warmups: Callable[[Config, Any], Path],
    same_weights: Same,
    tmp_path: Path,
    confidence: dict[str, Any],
    length: dict[str, Any],
) -> None:
    config = make_tiny(confidence={**confidence, **length}, train=TRAIN)
    start = warmups(config, length)
    before = _files(start)
    shared = train(config, tiny_dataset, tmp_path / "shared", start=start)
    alone = train(config, tiny_dataset, tmp_path / "alone")
    assert shared["history"][0]["train"]["largest_weight"] == 1 or length in (NONE, WITHIN)
    for run in (shared, alone):
        assert (run.pop("seconds_per_step") or 1) > 0  # None where all weighted steps were traced in their call
        assert run.pop("files")  # equal weights may give other bytes of TensorFlow's files
    assert shared == alone
    assert len(shared["history"]) > math.ceil(shared["warmup_steps"] / 19)  # something was weighed
    assert same_weights(tmp_path / "shared", tmp_path / "alone")
    assert _files(start) == before


def test_a_warm_up_takes_its_steps_and_no_more(
    make_tiny: Make, tiny_dataset: Dataset, state_of: StateOf, tmp_path: Path
) -> None:
    warm_up(make_tiny(confidence=BEYOND, train=TRAIN), tiny_dataset, tmp_path / "warmup")
    state = state_of(tmp_path / "warmup")
    assert (state["epoch"], state["step"]) == (1, 6)
    assert json.loads((tmp_path / "warmup" / "warmup.json").read_text())["steps"] == 25
    assert state["totals"][0] == 6 * 256  # rows of the epoch that is under way


def test_a_warm_up_that_was_stopped_goes_on_and_one_that_is_done_is_left_alone(
    make_tiny: Make, tiny_dataset: Dataset, same_weights: Same, state_of: StateOf, stopped: Stopped, tmp_path: Path
) -> None:
    config = make_tiny(confidence=BEYOND, train=TRAIN)
    there, whole = tmp_path / "stopped", tmp_path / "whole"
    stopped(2, lambda: warm_up(config, tiny_dataset, there))
    assert not (there / "warmup.json").exists()
    warm_up(config, tiny_dataset, there)
    warm_up(config, tiny_dataset, whole)
    states = [state_of(run) for run in (there, whole)]
    for state in states:
        state.pop("best_files")  # equal weights may give other bytes of TensorFlow's files
    assert states[0] == states[1]
    runs = [train(config, tiny_dataset, tmp_path / f"run-{p.name}", start=p) for p in (there, whole)]
    assert runs[0]["history"] == runs[1]["history"]
    assert same_weights(tmp_path / "run-stopped", tmp_path / "run-whole")
    before = _files(there)
    warm_up(make_tiny(confidence={"preset": "paper", **BEYOND}, train=TRAIN), tiny_dataset, there)
    assert _files(there) == before


def test_a_run_that_was_stopped_after_its_start_goes_on_from_itself(
    make_tiny: Make,
    tiny_dataset: Dataset,
    warmups: Callable[[Config, Any], Path],
    same_weights: Same,
    stopped: Stopped,
    tmp_path: Path,
) -> None:
    config = make_tiny(confidence=WITHIN, train=TRAIN)
    start = warmups(config, WITHIN)
    for number in (1, 2):  # before anything of its own is saved, and after its first epoch
        stopped(number, lambda: train(config, tiny_dataset, tmp_path / "run", start=start))
    run = train(config, tiny_dataset, tmp_path / "run", start=start)
    whole = train(config, tiny_dataset, tmp_path / "whole", start=start)
    assert run["history"] == whole["history"]
    assert same_weights(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 8},
        {"train": {**TRAIN, "batch_size": 128}},
        {"train": {**TRAIN, "dense_optimizer": {"name": "adam", "learning_rate": 0.01}}},
        {"model": {"embedding_dim": 8}},
        {"confidence": {"warmup_epochs": 0.5}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_warm_up_of_other_settings_is_refused(
    make_tiny: Make,
    tiny_dataset: Dataset,
    warmups: Callable[[Config, Any], Path],
    tmp_path: Path,
    changes: dict[str, Any],
) -> None:
    start = warmups(make_tiny(confidence=AT_AN_END, train=TRAIN), AT_AN_END)
    before = _files(start)
    other = make_tiny(**{"confidence": AT_AN_END, "train": TRAIN, **changes})
    with pytest.raises(UserError, match="is the warm-up of other settings or data; pass --overwrite"):
        train(other, tiny_dataset, tmp_path / "run", start=start)
    with pytest.raises(UserError, match="holds a run of other settings or data"):
        warm_up(other, tiny_dataset, start)
    assert _files(start) == before
    assert not (tmp_path / "run").exists()


def test_a_warm_up_of_other_settings_is_made_anew_where_that_is_asked_for(
    make_tiny: Make, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    place = tmp_path / "warmup"
    warm_up(make_tiny(confidence=WITHIN), tiny_dataset, place)
    warm_up(make_tiny(confidence=WITHIN, seed=8), tiny_dataset, place, overwrite=True)
    before = _files(place)
    train(make_tiny(confidence=WITHIN, seed=8, train={"epochs": 1}), tiny_dataset, tmp_path / "run")
    warm_up(make_tiny(confidence=WITHIN, seed=8), tiny_dataset, place, overwrite=True)  # now it fits
    assert _files(place) == before


def test_a_warm_up_that_leaves_nothing_to_weigh_is_refused(
    make_tiny: Make, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    config = make_tiny(confidence={"warmup_epochs": 3})
    with pytest.raises(
        UserError, match=r"confidence.warmup_epochs: the warm-up takes all 57 steps; raise train.epochs"
    ):
        warm_up(config, tiny_dataset, tmp_path / "warmup")
    assert not (tmp_path / "warmup").exists()
