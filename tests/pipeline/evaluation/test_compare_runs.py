"""A comparison: one start for all variants of a seed, metrics that follow from the runs, and resuming after a kill."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from scipy.stats import ttest_rel
from sklearn.metrics import roc_auc_score

from clsd.features.errors import UserError
from clsd.models.ranking import ndcg
from clsd.pipeline.cli import main
from clsd.pipeline.evaluation.compare_report import render
from clsd.pipeline.evaluation.compare_runs import compare
from clsd.pipeline.evaluation.compare_variants import CONTROLS, about, choose
from clsd.pipeline.shared.config import Config
from clsd.pipeline.shared.config_file import dump_config, parse_config
from clsd.pipeline.shared.dataset import Dataset
from clsd.pipeline.shared.json_files import read_json
from clsd.pipeline.training.train import train, warm_up

Make = Callable[..., Config]
SEEDS = [7, 8]
NAMES = [*CONTROLS, "configured", "fierce"]
TESTED = ("auc", "gauc", "ndcg", "intensity_auc", "log_loss")


@pytest.fixture(scope="module")
def config(make_tiny: Make) -> Config:
    """Fast steps, and a variant of the user's own that collapses."""
    return make_tiny(
        confidence={"tce_ramp_steps": 10},
        train={
            "epochs": 4,
            "embedding_optimizer": {"name": "adagrad", "learning_rate": 0.3},
            "dense_optimizer": {"name": "adam", "learning_rate": 0.01},
            "monitor": {"window_steps": 19},
        },
        compare={
            "variants": {"fierce": {"teacher": "self", "normalise": "none", "blend": float("inf")}},
            "bootstrap_rounds": 50,
            "ndcg_at": 5,
        },
    )


def _results(out: Path) -> dict[str, int]:
    return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in sorted(out.glob("seed-*/*/result.json"))}


def _result(out: Path, seed: int, name: str) -> Any:
    return json.loads((out / f"seed-{seed}" / name / "result.json").read_text())


def _history(run: Path) -> Any:
    return json.loads((run / "run.json").read_text())["history"]


@pytest.fixture(scope="module")
def killed(
    config: Config, tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, int]]:
    """A comparison by the command line whose launching process was killed, and the results that were there by then."""
    root = tmp_path_factory.mktemp("compare")
    (root / "c.yaml").write_text(dump_config(config))
    out = root / "compare"
    command = [sys.executable, "-m", "clsd.pipeline.cli", "compare", "--config", str(root / "c.yaml")]
    command += [
        "--dataset",
        str(tiny_dataset.directory),
        "--out",
        str(out),
        "--variants",
        "configured,fierce",
        "--seeds",
        "2",
    ]
    with open(root / "output.txt", "wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        while len(_results(out)) < 3:
            assert process.poll() is None, (root / "output.txt").read_text()
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    while _alive(process.pid):  # its workers end by themselves: else they would write into what goes on from here
        time.sleep(0.05)
    return out, _results(out)


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture(scope="module")
def compared(config: Config, tiny_dataset: Dataset, killed: tuple[Path, dict[str, int]]) -> tuple[Path, dict[str, Any]]:
    """The killed comparison, gone on with to its end."""
    out, _ = killed
    return out, compare(config, tiny_dataset, out, variants=["configured", "fierce"], seeds=2)


def _figures(result: dict[str, Any]) -> dict[str, Any]:
    """What a comparison found, without how long it took."""
    kept: dict[str, Any] = json.loads(json.dumps({key: value for key, value in result.items() if key != "seconds"}))
    for variant in kept["variants"].values():
        variant["metrics"].pop("seconds_per_step", None)
    return kept


# ---------------------------------------------------------------- what was trained


def test_a_killed_comparison_goes_on_and_trains_nothing_twice(
    killed: tuple[Path, dict[str, int]], compared: tuple[Path, dict[str, Any]]
) -> None:
    out, before = killed
    after = _results(out)
    assert 3 <= len(before) < len(after) == 2 * len(NAMES)
    assert {path: after[path] for path in before} == before
    trained = [line for line in (out / "log.txt").read_text().splitlines() if line.startswith("== ")]
    assert trained.count("== seed 7 plain") == 1
    assert trained.count("== seed 7 warm-up") <= 2  # asked for again, and found done
    assert not list(out.glob("seed-*/*/checkpoints/*")) or {
        p.parts[-3] for p in out.glob("seed-*/*/checkpoints/*")
    } == {"warmup"}


def test_every_variant_of_a_seed_starts_from_its_warm_up(compared: tuple[Path, dict[str, Any]]) -> None:
    out, result = compared
    assert list(result["variants"]) == NAMES
    assert result["seeds"] == SEEDS
    firsts = {seed: [_history(out / f"seed-{seed}" / name)[0] for name in NAMES] for seed in SEEDS}
    for seed, epochs in firsts.items():
        assert all(epoch == epochs[0] for epoch in epochs), seed
    assert firsts[7][0] != firsts[8][0]
    lasts = [_history(out / "seed-7" / name)[-1]["train"]["loss"] for name in NAMES]
    assert len(set(lasts)) == len(NAMES)  # and then each goes its way


def test_plain_is_plain_training_from_the_same_warm_up(
    config: Config, tiny_dataset: Dataset, compared: tuple[Path, dict[str, Any]], same_weights: Any, tmp_path: Path
) -> None:
    out, _ = compared
    plain = choose(config, [])[0]["plain"].model_copy(update={"seed": 8})
    warm_up(plain, tiny_dataset, tmp_path / "warmup")
    train(plain, tiny_dataset, tmp_path / "plain", start=tmp_path / "warmup")
    assert same_weights(tmp_path / "plain", out / "seed-8" / "plain")
    assert _history(tmp_path / "plain") == _history(out / "seed-8" / "plain")
    alone = plain.model_copy(update={"confidence": plain.confidence.model_copy(update={"warmup_epochs": 0.0})})
    assert train(alone, tiny_dataset, tmp_path / "alone")["history"] == _history(tmp_path / "plain")


def test_what_is_lost_is_made_again_with_the_same_figures(
    config: Config, tiny_dataset: Dataset, compared: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out, result = compared
    copy = Path(shutil.copytree(out, tmp_path / "copy"))
    (copy / "seed-7" / "permuted" / "result.json").unlink()  # trained, and not measured
    shutil.rmtree(copy / "seed-8" / "tce")
    half = copy / "seed-8" / "configured"  # begun, and nothing saved yet
    for path in half.iterdir():
        if path.name != "config.yaml":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (copy / "compare.json").unlink()
    before = _results(copy)
    again = compare(config, tiny_dataset, copy, variants=["configured", "fierce"], seeds=2)
    after = _results(copy)
    assert len(after) == len(before) + 3
    assert {path: after[path] for path in before} == before
    assert _figures(again) == _figures(result)
    assert read_json(copy / "compare.json", "comparison", "") == json.loads(json.dumps(again))


def test_results_of_other_settings_are_refused_or_made_anew(
    config: Config, tiny_dataset: Dataset, compared: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(compared[0], tmp_path / "copy"))
    raw = config.model_dump(mode="python", by_alias=True)
    other = parse_config({**raw, "train": {**raw["train"], "epochs": 2}}, "test config")
    before = _results(copy)
    with pytest.raises(UserError, match=r"seed-7/plain: holds the result of other settings or data; pass --overwrite"):
        compare(other, tiny_dataset, copy, variants=["plain"], seeds=1, controls=False)
    assert _results(copy) == before
    result = compare(other, tiny_dataset, copy, variants=["plain"], seeds=1, controls=False, overwrite=True)
    assert result["variants"]["plain"]["epochs"] == [2]
    assert len(_history(copy / "seed-7" / "plain")) == 2
    after = _results(copy)
    assert [path for path in before if after[path] != before[path]] == ["seed-7/plain/result.json"]


def test_what_is_measured_otherwise_is_measured_anew_and_not_trained(
    config: Config, tiny_dataset: Dataset, compared: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(compared[0], tmp_path / "copy"))
    raw = config.model_dump(mode="python", by_alias=True)
    other = parse_config({**raw, "compare": {**raw["compare"], "ndcg_at": 2}}, "test config")
    weights = {path: path.stat().st_mtime_ns for path in copy.rglob("best/*")}
    result = compare(other, tiny_dataset, copy, variants=["plain"], seeds=1, controls=False)
    value = result["variants"]["plain"]["metrics"]["ndcg"]["mean"]
    scores = np.load(copy / "seed-7" / "plain" / "scores.npz")
    expected, _ = ndcg(scores["user"], scores["logit"], np.nan_to_num(scores["intensity"]) * scores["label"], 2)
    assert value == pytest.approx(expected, abs=1e-12)
    assert value != compared[1]["variants"]["plain"]["metrics"]["ndcg"]["values"][0]
    on_validation = parse_config({**raw, "evaluate": {**raw["evaluate"], "split": "validation"}}, "test config")
    compare(on_validation, tiny_dataset, copy, variants=["plain"], seeds=1, controls=False)
    assert len(np.load(copy / "seed-7" / "plain" / "scores.npz")["label"]) == tiny_dataset.rows("validation")
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("best/*")} == weights


# ---------------------------------------------------------------- what was found


def test_a_result_is_what_the_scores_say(tiny_dataset: Dataset, compared: tuple[Path, dict[str, Any]]) -> None:
    out, result = compared
    for name in NAMES:
        scores = np.load(out / "seed-8" / name / "scores.npz")
        metrics = _result(out, 8, name)["metrics"]
        assert len(scores["label"]) == tiny_dataset.rows("test")
        assert metrics["auc"] == pytest.approx(roc_auc_score(scores["label"], scores["logit"]), abs=1e-9)
        p = 1 / (1 + np.exp(-scores["logit"].astype(np.float64)))
        assert metrics["predicted_over_real_score"] == pytest.approx(p.mean() / scores["label"].mean())
        assert result["variants"][name]["metrics"]["auc"]["values"][1] == metrics["auc"]


def test_differences_and_tests_are_those_of_numpy_and_scipy(compared: tuple[Path, dict[str, Any]]) -> None:
    out, result = compared
    assert list(result["differences"]) == ["plain", "permuted", "popularity"]
    for reference, by_metric in result["differences"].items():
        assert tuple(by_metric) == TESTED
        for metric, by_name in by_metric.items():
            assert list(by_name) == [name for name in NAMES if name != reference]
            for name, pair in by_name.items():
                mine, theirs = (
                    [_result(out, seed, which)["metrics"][metric] for seed in SEEDS] for which in (name, reference)
                )
                differences = np.subtract(mine, theirs)
                assert pair["n"] == 2
                assert pair["mean"] == pytest.approx(differences.mean(), abs=1e-12)
                assert pair["sd"] == pytest.approx(differences.std(ddof=1), abs=1e-12)
                if pair["p"] is not None:
                    assert pair["p"] == pytest.approx(ttest_rel(mine, theirs).pvalue, rel=1e-6)
            # Holm: the smallest p of a family by the number of its tests.
            known = [pair for pair in by_name.values() if pair["p"] is not None]
            least = min(known, key=lambda pair: pair["p"])
            assert least["p_corrected"] == pytest.approx(min(1, len(known) * least["p"]))
            assert all(pair["p_corrected"] >= pair["p"] for pair in known)


def test_one_pair_is_held_against_plain_over_users(compared: tuple[Path, dict[str, Any]]) -> None:
    out, result = compared
    assert (result["bootstrap"]["reference"], result["bootstrap"]["seed"]) == ("plain", 7)
    assert list(result["bootstrap"]["variants"]) == [name for name in NAMES if name != "plain"]
    for name, by_metric in result["bootstrap"]["variants"].items():
        assert set(by_metric) == {"auc", "gauc", "ndcg"}
        for metric, interval in by_metric.items():
            mine, theirs = (_result(out, 7, which)["metrics"][metric] for which in (name, "plain"))
            assert interval["difference"] == pytest.approx(mine - theirs, abs=1e-9)
            # A variant that ranked every user as plain did differs by nothing, in every draw.
            assert interval["low"] < interval["high"] or interval["low"] == interval["difference"] == 0


def test_what_collapsed_carries_the_mark_and_nothing_else_does(compared: tuple[Path, dict[str, Any]]) -> None:
    _, result = compared
    marked = {name: variant["collapsed"] for name, variant in result["variants"].items() if variant["collapsed"]}
    assert set(marked) == {"fierce"}
    assert set(marked["fierce"]) == {"7", "8"}
    assert "train.monitor.predicted_over_real" in marked["fierce"]["7"]


# ---------------------------------------------------------------- what is shown


def test_the_page_fetches_nothing_and_shows_every_interval(compared: tuple[Path, dict[str, Any]]) -> None:
    out, result = compared
    page = (out / "report.html").read_text()
    assert page.count("<svg") == len(result["differences"]) * len(TESTED)
    fetched = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(?!#)([^"')\s>]+)""", page)
    assert [address for address in fetched if not address.startswith("#")] == []
    assert "<script" not in page
    for name in NAMES:
        assert f"<td>{name}</td>" in page
    (collapsed,) = re.findall(r"<td>(\w+)</td><td class=\"text\">[^<]*<b>Collapsed</b>: ([^<]*)", page)
    assert collapsed[0] == "fierce"
    assert "seed 7, the mean prediction is" in collapsed[1]
    tables = (out / "compare.md").read_text()
    assert tables.count("| fierce (collapsed) |") == len(result["differences"])


def test_what_was_left_out_is_shown_with_its_reason(
    config: Config, tiny_dataset: Dataset, compared: tuple[Path, dict[str, Any]]
) -> None:
    result = {**compared[1], "left_out": {"oracle": "the log has no intensity"}}
    page = render(config, tiny_dataset.manifest, result)
    assert "left out: the log has no intensity" in page


def test_a_control_that_the_log_cannot_have_is_left_out_unless_it_is_asked_for(make_config: Make) -> None:
    bare = make_config(rows={"intensity": ""}, evaluate={"item": ""})
    chosen, left_out = choose(bare, [])
    assert set(left_out) == {"oracle", "popularity"}
    assert list(chosen) == [name for name in [*CONTROLS, "configured"] if name not in left_out]
    assert left_out["oracle"].startswith("the log has no intensity; name its column as rows.intensity")
    assert "name it as evaluate.item" in left_out["popularity"]
    with pytest.raises(UserError, match="variant oracle: the log has no intensity"):
        choose(bare, ["oracle"])
    for name in ("item", "two-level"):
        with pytest.raises(UserError, match=rf"variant {name}: no feature with a vocabulary names the item"):
            choose(bare, [name])
    assert set(choose(make_config(evaluate={"item": "category"}), [])[1]) == {"popularity"}  # ids by hash count nothing
    assert choose(make_config(), [])[1] == {}


def test_what_the_variants_are_held_against_must_be_among_them(make_config: Make) -> None:
    with pytest.raises(UserError, match=r"compare.references: plian: is not a variant; did you mean 'plain'\?"):
        choose(make_config(compare={"references": ["plian"]}), [])
    with pytest.raises(UserError, match="none of plain, permuted, popularity is among the variants; name one"):
        choose(make_config(), ["configured"], controls=False)
    assert list(choose(make_config(), ["plain", "ema"], controls=False)[0]) == ["plain", "ema"]


def test_what_the_config_itself_asks_for_must_be_there(make_config: Make) -> None:
    itemless = make_config(evaluate={"item": ""}, confidence={"preset": "two-level"})
    with pytest.raises(UserError, match="variant configured: no feature with a vocabulary names the item"):
        choose(itemless, [])
    assert choose(itemless, ["stable"])[1].keys() == {"constant", "permuted", "permuted-raw", "popularity"}


def test_variants_change_what_they_say_and_keep_the_warm_up(make_config: Make) -> None:
    own = {"mine": {"blend": 3.0}, "raw": {"preset": "paper", "alpha": 0.5}}
    config = make_config(confidence={"alpha": 2.0, "warmup_steps": 11}, compare={"variants": own})
    chosen, _ = choose(config, ["configured", "mine", "raw", "paper", "no-blend"])
    assert chosen["configured"].confidence == config.confidence
    assert (chosen["mine"].confidence.blend, chosen["mine"].confidence.alpha) == (3.0, 2.0)
    assert (chosen["raw"].confidence.teacher, chosen["raw"].confidence.alpha) == ("self", 0.5)
    assert chosen["paper"].confidence.alpha == 1.0  # a preset starts from itself
    assert chosen["no-blend"].confidence.blend == float("inf")
    assert {made.confidence.warmup_steps for made in chosen.values()} == {11}
    assert {made.train.monitor.action for made in chosen.values()} == {"warn"}
    assert about(config, "mine") == "blend: 3.0"
    groupless = make_config(rows={"groups": []}, confidence={"gate": "off"})
    assert choose(groupless, ["stable"])[0]["stable"].confidence.gate == "off"


@pytest.mark.parametrize("name", ["plain", "oracle", "configured", "no-gate", "warmup", "../elsewhere", "a/b", ".", ""])
def test_a_variant_of_the_users_own_hides_no_other_and_names_a_directory(make_config: Make, name: str) -> None:
    config = make_config(compare={"variants": {name: {"blend": 2.0}}})
    with pytest.raises(UserError, match=rf"compare.variants.{re.escape(name)}: cannot be the name of a variant"):
        choose(config, [])


def test_a_variant_of_the_users_own_must_fit(make_config: Make) -> None:
    with pytest.raises(UserError, match=r"compare.variants.mine: changes the warm-up, which all variants share"):
        choose(make_config(compare={"variants": {"mine": {"warmup_epochs": 2}}}), [])
    with pytest.raises(UserError, match=r"confidence.blnd: unknown setting; did you mean 'blend'\?"):
        choose(make_config(compare={"variants": {"mine": {"blnd": 2}}}), ["mine"])


def test_an_unknown_variant_is_refused_in_one_line(config: Config, tiny_dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(dump_config(config))
    command = [
        "compare",
        "--config",
        tmp_path / "c.yaml",
        "--dataset",
        tiny_dataset.directory,
        "--out",
        tmp_path / "out",
    ]
    result = CliRunner().invoke(main, [str(word) for word in [*command, "--variants", "no-blnd"]])
    assert result.exit_code == 2
    assert result.stderr == "error: variant no-blnd: is not known; did you mean 'no-blend'?\n"
    assert not (tmp_path / "out").exists()
