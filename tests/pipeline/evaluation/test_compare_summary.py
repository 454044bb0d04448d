"""Summaries of hand-made results, in the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Callable
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from clsd.pipeline.evaluation.compare_report import beyond_chance, difference, markdown, table, value
from clsd.pipeline.evaluation.compare_summary import TESTED, compare_results
from clsd.pipeline.shared.config import Config

Make = Callable[..., Config]


def _runs(auc: list[float | None], *, collapsed: dict[int, str] | None = None, **more: list[float]) -> dict[int, Any]:
    """Results of seeds 1, 2, ... with these values of each metric; None where one is undefined."""
    columns = {"auc": auc, **more}
    return {
        seed: {
            "best_epoch": seed + 1,
            "collapsed": (collapsed or {}).get(seed, ""),
            "seconds_per_step": 0.001 * seed,
            "metrics": {name: values[seed - 1] for name, values in columns.items() if values[seed - 1] is not None},
        }
        for seed in range(1, len(auc) + 1)
    }


@pytest.fixture
def result(make_config: Make) -> dict[str, Any]:
    """Three seeds: steady and shaky differences, one metric undefined in a seed, one collapsed."""
    config = make_config(compare={"references": ["plain", "popularity", "not-there"]})
    results = {
        "plain": _runs([0.70, 0.72, 0.74], log_loss=[0.5, 0.5, 0.5], gauc=[0.6, 0.6, 0.6]),
        "configured": _runs([0.7110, 0.7311, 0.7509], log_loss=[0.4, 0.41, 0.42]),
        "popularity": _runs([0.71, 0.70, 0.76]),
        "paper": _runs([0.60, None, 0.65], collapsed={1: "the mean prediction is 0.1 of the CTR"}),
        "stable": _runs([0.71, 0.73, 0.75]),
    }
    result = compare_results(config, results, {})
    return {**result, "left_out": {}}


def test_means_and_deviations_are_over_the_seeds_that_have_the_metric(result: dict[str, Any]) -> None:
    assert result["seeds"] == [1, 2, 3]
    auc = result["variants"]["configured"]["metrics"]["auc"]
    assert auc["mean"] == pytest.approx(0.731)
    assert auc["sd"] == pytest.approx(0.01995, abs=1e-5)
    paper = result["variants"]["paper"]["metrics"]["auc"]
    assert paper == {
        "mean": pytest.approx(0.625),
        "sd": pytest.approx(0.0353553, abs=1e-6),
        "values": [0.60, None, 0.65],
    }
    assert "ndcg" not in result["variants"]["plain"]["metrics"]
    assert result["variants"]["plain"]["metrics"]["seconds_per_step"]["mean"] == pytest.approx(0.002)
    assert result["variants"]["plain"]["epochs"] == [2, 3, 4]


def test_differences_are_paired_over_the_seeds_that_both_have(result: dict[str, Any]) -> None:
    assert list(result["differences"]) == ["plain", "popularity"]
    against = result["differences"]["plain"]["auc"]
    assert list(against) == ["configured", "popularity", "paper", "stable"]
    assert against["configured"]["mean"] == pytest.approx(0.011)
    assert against["configured"]["n"] == 3
    assert (against["paper"]["n"], against["paper"]["mean"]) == (2, pytest.approx(-0.095))
    # The same difference in every seed: no test divides by 0.
    assert (against["stable"]["mean"], against["stable"]["sd"]) == (pytest.approx(0.01), 0.0)
    assert against["stable"]["p"] is against["stable"]["p_corrected"] is None
    assert result["differences"]["plain"]["gauc"] == {}  # nobody else has it
    assert list(result["differences"]["plain"]["log_loss"]) == ["configured"]


def test_each_metric_is_a_family_of_tests_of_its_own(result: dict[str, Any]) -> None:
    auc = result["differences"]["plain"]["auc"]
    p = {name: auc[name]["p"] for name in ("configured", "popularity", "paper")}
    assert p["configured"] < p["paper"] < p["popularity"]
    assert auc["configured"]["p_corrected"] == pytest.approx(3 * p["configured"])
    assert auc["paper"]["p_corrected"] == pytest.approx(2 * p["paper"])
    assert auc["popularity"]["p_corrected"] == pytest.approx(max(2 * p["paper"], p["popularity"]))
    alone = result["differences"]["plain"]["log_loss"]["configured"]
    assert alone["p_corrected"] == alone["p"]


def test_one_seed_has_differences_and_no_test(make_config: Make) -> None:
    result = compare_results(make_config(), {"plain": _runs([0.7]), "configured": _runs([0.8])}, {})
    pair = result["differences"]["plain"]["auc"]["configured"]
    assert pair["mean"] == pytest.approx(0.1)
    assert {pair[key] for key in ("sd", "low", "high", "p", "p_corrected")} == {None}
    assert result["variants"]["plain"]["metrics"]["auc"]["sd"] is None
    assert difference(result, "plain", "auc", "configured") == "+1000.0"


def test_what_collapsed_is_said_by_seed(result: dict[str, Any]) -> None:
    assert result["variants"]["paper"]["collapsed"] == {"1": "the mean prediction is 0.1 of the CTR"}
    assert all(not variant["collapsed"] for name, variant in result["variants"].items() if name != "paper")


def test_cells_are_the_mean_difference_its_deviation_and_a_star(result: dict[str, Any]) -> None:
    assert difference(result, "plain", "auc", "plain") == "0.7200"  # the reference's own
    assert difference(result, "plain", "auc", "configured") == "+110.0 ± 1.0 *"
    assert difference(result, "plain", "auc", "popularity") == "+33.3 ± 208.2"
    assert difference(result, "plain", "auc", "stable") == "+100.0 ± 0.0"
    assert difference(result, "plain", "log_loss", "paper") == "undefined"
    assert value(result["variants"]["plain"], "ndcg") == "-"
    assert value(result["variants"]["plain"], "seconds_per_step") == "2.0"
    pair = result["differences"]["plain"]["auc"]["configured"]
    assert beyond_chance({"level": 0.95}, {**pair, "p_corrected": 0.049})
    assert not beyond_chance({"level": 0.95}, {**pair, "p_corrected": 0.051})
    assert not beyond_chance({"level": 0.99}, {**pair, "p_corrected": 0.049})


def test_the_terminal_and_markdown_show_every_variant_and_the_metrics_that_there_are(result: dict[str, Any]) -> None:
    out = StringIO()
    Console(file=out, width=200).print(table(result, "plain"))
    output = out.getvalue()
    assert "against plain, test split, 3 seeds" in output
    assert TESTED["auc"].label in output
    assert TESTED["ndcg"].label not in output
    assert "paper (collapsed)" in output
    written = markdown(result)
    rows = [line for line in written.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 * (1 + 5)
    assert all(line.count("|") == rows[0].count("|") for line in rows[:6])
    assert "| configured | +110.0 ± 1.0 * | -900.0 ± 100.0 * |" in written
