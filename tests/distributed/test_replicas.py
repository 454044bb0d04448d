"""One, two and four replicas, and two processes, reach the same weights, moments and metrics on the same global batches.

Two replicas train every variant. Four replicas and two processes train one variant of each way to communicate: sums alone, a
teacher that is copied each step, a permutation of all clicks, and a threshold over all clicks.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).with_name("replica_run.py")
ROOT = SCRIPT.parents[2]
REPLICAS = (1, 2, 4)
TEACHERS = ("frozen", "frozen-refreshed", "ema", "previous", "self", "paper")
CONTROLS = ("popularity", "intensity", "constant", "permuted", "rce", "tce", "plain")
VARIANTS = (*TEACHERS, *CONTROLS)
WITHOUT = {"teacher": ("self", "paper", "plain", "popularity", "intensity", "rce", "tce")}
WITHOUT |= {"gate": ("plain", "rce", "tce")}
FEWER = ("frozen", "previous", "permuted", "tce")
LIMIT = 1e-6

#: The second of two processes that train together by MultiWorkerMirroredStrategy.
WORKER = -2

Results = Mapping[int, Mapping[str, np.ndarray]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, clusters: Callable[[int], list[str]]) -> Results:
    out = tmp_path_factory.mktemp("replicas")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    tf_configs = dict(zip((WORKER + 1, WORKER), clusters(2), strict=True))
    processes = {}
    for n in (*REPLICAS, *tf_configs):
        with (out / f"{n}.log").open("w") as log:  # a file: a pipe that nobody reads would fill
            names = VARIANTS if n in (1, 2) else FEWER
            command = [sys.executable, str(SCRIPT), str(n if n > 0 else 2), str(out / f"{n}.npz"), *names]
            mine = {**environment, "TF_CONFIG": tf_configs[n]} if n in tf_configs else environment
            processes[n] = subprocess.Popen(command, env=mine, stdout=log, stderr=subprocess.STDOUT)
    codes = {n: process.wait() for n, process in processes.items()}
    for n, code in codes.items():
        assert code == 0, f"{n} replicas:\n" + (out / f"{n}.log").read_text()[-3000:]
    return {n: dict(np.load(out / f"{n}.npz")) for n in processes}


def _largest_difference(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray], prefix: str) -> float:
    keys = [key for key in a if key.startswith(prefix)]
    assert keys and keys == [key for key in b if key.startswith(prefix)]
    assert all(np.isfinite(a[key]).all() for key in keys)
    return max(float(np.abs(a[key] - b[key]).max()) for key in keys)


@pytest.mark.parametrize(
    ("variant", "replicas"),
    [*((variant, 2) for variant in VARIANTS), *((variant, n) for variant in FEWER for n in (4, WORKER))],
)
@pytest.mark.parametrize("what", ["backbone", "teacher", "gate", "moments", "weight_moments", "figures"])
def test_replicas_train_as_one(results: Results, replicas: int, variant: str, what: str) -> None:
    if variant in WITHOUT.get(what, ()):
        assert not [key for key in results[1] if key.startswith(f"{variant}/{what}/")]
        return
    assert _largest_difference(results[1], results[replicas], f"{variant}/{what}") <= LIMIT


def test_one_replica_trains_as_no_strategy_at_all(results: Results) -> None:
    bare = {k.removeprefix("without-strategy/"): v for k, v in results[1].items() if k.startswith("without-strategy/")}
    assert _largest_difference(results[1], bare, "frozen/") <= LIMIT


@pytest.mark.parametrize("replicas", REPLICAS)
def test_a_step_reads_no_table_whole(results: Results, replicas: int) -> None:
    by_row, whole = results[replicas]["lookups"]
    # Of the user, the item and the history, by the student and in the branch that asks the teacher; of the gate's group.
    assert by_row == 7 * replicas and whole == 0


def test_the_batches_hold_the_hard_cases(results: Results) -> None:
    clicks = results[1]["labels"].reshape(50, 4, 8).sum(axis=2)  # by batch and quarter, the fourth replica's rows last
    assert not clicks[1].any() and not clicks[7].any()
    assert (clicks[4] > 0).tolist() == (clicks[11] > 0).tolist() == [True, False, False, False]
    assert (clicks[5] > 0).tolist() == [False, False, False, True]
    assert clicks[9].sum() == 1 and (clicks[13] == 8).all()
    assert clicks[49].any() and clicks[49, 3] == 0


@pytest.mark.parametrize("variant", VARIANTS[:-1])
def test_the_weighting_really_acts(results: Results, variant: str) -> None:
    moments = results[1][f"{variant}/moments"]
    assert not moments[:3].any() and moments[3].all()  # at rest in warm-up
    np.testing.assert_array_equal(moments[7], moments[6])  # no positives
    mean_weight = results[1][f"{variant}/figures"][:, 3]
    later = (
        np.delete(mean_weight[8:], 1) if variant == "tce" else mean_weight[8:]
    )  # that spares the one click of batch 9
    assert (np.delete(mean_weight[:3], 1) == 1).all() and (np.abs(later - 1) > 1e-4).all()
    blind = variant in ("intensity", "constant", "permuted")
    assert results[1][f"{variant}/weight_moments"].all() == blind
    if variant in WITHOUT["gate"]:
        return
    out_bias = next(v for k, v in results[1].items() if k.startswith(f"{variant}/gate/") and v.shape == (1,))
    assert np.abs(out_bias).max() > 1e-3


def test_teachers_lag_behind_the_model(results: Results) -> None:
    for variant in set(VARIANTS) - set(WITHOUT["teacher"]):
        lag = {
            key: np.abs(value - results[1][key.replace("/backbone/", "/teacher/")]).max()
            for key, value in results[1].items()
            if key.startswith(f"{variant}/backbone/")
        }
        assert max(lag.values()) > 1e-3, variant


def test_fact_7_keras_divides_by_the_rows_of_each_replica_and_we_by_those_of_all(results: Results) -> None:
    """One step from logits of 0: each row moves k by w (y - 1/2) x over the count. Ten rows, on two replicas eight and two."""
    moves = {n: {key.removeprefix("keras/"): x for key, x in results[n].items()} for n in (1, 2)}
    x, y, w = (moves[1][name].astype(np.float64) for name in ("x", "label", "weight"))
    of_row = w * (y - 0.5) * x
    global_mean, by_replica = of_row.mean(), (of_row[:8].mean() + of_row[8:].mean()) / 2
    for n in (1, 2):
        assert moves[n]["ours"] == pytest.approx(global_mean, rel=1e-6)
        assert moves[n]["padded"] == pytest.approx(of_row.sum() / 16, rel=1e-6)  # padding counts as rows of weight 0
    assert moves[1]["ragged"] == pytest.approx(global_mean, rel=1e-6)
    assert moves[2]["ragged"] == pytest.approx(by_replica, rel=1e-6)
    assert abs(by_replica - global_mean) > 0.1 * abs(global_mean)
