"""One, two and four replicas train to the same weights, moments and figures over the same global batches."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).with_name("replica_run.py")
ROOT = SCRIPT.parents[2]
REPLICAS = (1, 2, 4)
VARIANTS = ("frozen", "frozen-refreshed", "ema", "previous", "self", "paper", "plain")
LIMIT = 1e-6

Results = Mapping[int, Mapping[str, np.ndarray]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    out = tmp_path_factory.mktemp("replicas")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    processes = {}
    for n in REPLICAS:
        with (out / f"{n}.log").open("w") as log:  # a file: a pipe that nobody reads would fill
            command = [sys.executable, str(SCRIPT), str(n), str(out / f"{n}.npz")]
            processes[n] = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    codes = {n: process.wait() for n, process in processes.items()}
    for n, code in codes.items():
        assert code == 0, f"{n} replicas:\n" + (out / f"{n}.log").read_text()[-3000:]
    return {n: dict(np.load(out / f"{n}.npz")) for n in REPLICAS}


def _largest_difference(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray], prefix: str) -> float:
    keys = [key for key in a if key.startswith(prefix)]
    assert keys and keys == [key for key in b if key.startswith(prefix)]
    assert all(np.isfinite(a[key]).all() for key in keys)
    return max(float(np.abs(a[key] - b[key]).max()) for key in keys)


@pytest.mark.parametrize("replicas", REPLICAS[1:])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("what", ["backbone", "teacher", "gate", "moments", "figures"])
def test_replicas_train_as_one(results: Results, replicas: int, variant: str, what: str) -> None:
    absent = {"teacher": ("self", "paper", "plain"), "gate": ("plain",)}
    if variant in absent.get(what, ()):
        assert not [key for key in results[1] if key.startswith(f"{variant}/{what}/")]
        return
    assert _largest_difference(results[1], results[replicas], f"{variant}/{what}") <= LIMIT


def test_one_replica_trains_as_no_strategy_at_all(results: Results) -> None:
    bare = {k.removeprefix("without-strategy/"): v for k, v in results[1].items() if k.startswith("without-strategy/")}
    assert _largest_difference(results[1], bare, "frozen/") <= LIMIT


def test_the_batches_hold_the_hard_cases(results: Results) -> None:
    clicks = results[1]["labels"].reshape(20, 4, 8).sum(axis=2)  # by batch and quarter, the fourth replica's rows last
    assert not clicks[1].any() and not clicks[7].any()
    assert (clicks[4] > 0).tolist() == (clicks[11] > 0).tolist() == [True, False, False, False]
    assert (clicks[5] > 0).tolist() == [False, False, False, True]
    assert clicks[9].sum() == 1 and (clicks[13] == 8).all()
    assert clicks[19].any() and clicks[19, 3] == 0


@pytest.mark.parametrize("variant", VARIANTS[:-1])
def test_the_weighting_really_acts(results: Results, variant: str) -> None:
    moments = results[1][f"{variant}/moments"]
    assert not moments[:3].any() and moments[3].all()  # at rest in warm-up
    np.testing.assert_array_equal(moments[7], moments[6])  # no positives
    mean_weight = results[1][f"{variant}/figures"][:, 3]
    assert (np.delete(mean_weight[:3], 1) == 1).all() and (np.abs(mean_weight[8:] - 1) > 1e-4).all()
    out_bias = next(v for k, v in results[1].items() if k.startswith(f"{variant}/gate/") and v.shape == (1,))
    assert np.abs(out_bias).max() > 1e-3


def test_teachers_lag_behind_the_model(results: Results) -> None:
    for variant in ("frozen", "frozen-refreshed", "ema", "previous"):
        lag = {
            key: np.abs(value - results[1][key.replace("/backbone/", "/teacher/")]).max()
            for key, value in results[1].items()
            if key.startswith(f"{variant}/backbone/")
        }
        assert max(lag.values()) > 1e-3, variant
