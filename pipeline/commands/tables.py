"""The terminal output of commands: tables, and lines beside them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from rich.table import Table

from clsd.pipeline.preprocess.columns import SPLITS
from clsd.pipeline.shared.progress import console, say, styled, warn

if TYPE_CHECKING:  # `clsd --help` must not wait for these
    from clsd.pipeline.evaluation.drift import FeatureDrift
    from clsd.pipeline.run import Outcome
    from clsd.pipeline.shared.dataset import Dataset


def show_dataset(dataset: Dataset) -> None:
    """Rows and CTR by split, unread columns, out-of-vocabulary shares, and refused rows."""
    table = Table(title=None, box=None, pad_edge=False)
    for column in ("split", "rows", "CTR", "shards"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for split in dataset.splits:
        table.add_row(split, f"{dataset.rows(split):,}", f"{dataset.ctr(split):.3%}", str(len(dataset.files(split))))
    console.print(table)
    if empty := [split for split in SPLITS if split not in dataset.splits]:
        warn(f"no row is in the {' or the '.join(empty)} split: see preprocess.split")
    if dataset.kept_negatives < 1:
        say(
            f"{dataset.kept_negatives:.0%} of the training split's non-clicks were kept (preprocess.keep_negatives)",
            style="dim",
        )
    if unread := dataset.manifest.get("columns_not_read"):
        say(f"columns that nothing reads: {', '.join(unread)}", style="dim")
    for name, result in dataset.manifest["splits"]["train"]["quality"].items():
        share = result["out_of_vocabulary"] / dataset.rows("train")
        if share > 0.05:
            warn(f"{name}: {share:.0%} of the training rows are out of vocabulary")
    rows, dead_letters = dataset.manifest["rows"], dataset.manifest["dead_letters"]
    reasons = "".join(f"; {n} x {reason}" for reason, n in dead_letters["reasons"].items())
    gap = f", {rows['in_gap']:,} left out in the gap" if rows.get("in_gap") else ""
    say(f"{rows['read']:,} rows read, {rows['refused']:,} refused{reasons}{gap}")


def show_drift(old: Dataset, new: Dataset, result: list[FeatureDrift], max_psi: float) -> None:
    """The drift of each feature; features beyond the bound are red."""
    table = Table(box=None, pad_edge=False)
    for column in ("feature", "PSI", "missing", "largest change"):
        table.add_column(column, justify="right" if column in ("PSI", "missing") else "left")
    for feature in result:
        known = "-" if feature.psi is None else f"{feature.psi:.3f}"
        far = feature.psi is not None and feature.psi > max_psi
        missing = f"{feature.missing[0]:.1%} to {feature.missing[1]:.1%}"
        table.add_row(feature.feature, styled((known, "red" if far else "")), missing, feature.what)
    console.print(table)
    say(f"CTR of training {old.log_ctr:.3%} to {new.log_ctr:.3%}")


def show_skew(result: dict[str, Any]) -> None:
    """Scores and features of served requests; values out of bounds are red."""
    table = Table(box=None, pad_edge=False)
    for column in ("output", "compared", "differ", "largest difference", "served", "trained"):
        table.add_column(column, justify="left" if column == "output" else "right")
    for name, score in result["scores"].items():
        differ = styled((f"{score['differ']:,}", "red" if score["differ"] else ""))
        shown = ["no number" if score[key] is None else f"{score[key]:.6f}" for key in ("largest", "served", "trained")]
        table.add_row(name, f"{score['compared']:,}", differ, f"{shown[0]}, row {score['row']:,}", *shown[1:])
    console.print(table)
    if not result["scores"]:
        warn("no row has score, ctr or confidence: only the features are compared")
    table = Table(box=None, pad_edge=False)
    for column in ("feature", "PSI", "by chance", "missing", "unknown", "largest change"):
        table.add_column(column, justify="left" if column in ("feature", "largest change") else "right")
    for feature in result["features"]:
        known, red = f"{feature['psi']:.3f}", feature["feature"] in result["moved"]
        shares = [f"{pair[0]:.1%} to {pair[1]:.1%}" for pair in (feature["missing"], feature["unknown"])]
        table.add_row(
            feature["feature"],
            styled((known, "red" if red else "")),
            f"{feature['chance']:.3f}",
            *shares,
            feature["what"],
        )
    console.print(table)


def show_metrics(metrics: dict[str, Any]) -> None:
    """The metrics of ``metrics.json`` as a table; below it, the reasons of undefined values."""
    from clsd.pipeline.evaluation.report import summary_rows  # imports matplotlib

    table = Table(
        title=f"{metrics['split']} split, {metrics['score']['rows']:,} rows",
        box=None,
        pad_edge=False,
        title_justify="left",
    )
    table.add_column("")
    table.add_column("score, as trained", justify="right")
    table.add_column("ctr, corrected", justify="right")
    if "ctr_cheap" in metrics:
        table.add_column("corrected cheaply", justify="right")
    reasons: dict[str, str] = {}
    for label, *cells in summary_rows(metrics):
        reasons.update((label, cell) for cell in cells if cell.startswith("undefined"))
        table.add_row(label, *("-" if cell.startswith("undefined") else cell for cell in cells))
    correlations = metrics.get("intensity", {})
    for name, label in (("spearman", "confidence ~ intensity"), ("given_popularity", "  given popularity")):
        if name in correlations:
            table.add_row(label, f"{correlations[name]:+.3f}", "")
    console.print(table)
    for label, reason in reasons.items():
        say(f"{label} is {reason}", style="dim")


def show_outcome(outcome: Outcome) -> None:
    """The end of `clsd run`: the metrics, a row with its prediction, and the paths of all results."""
    console.print()
    show_metrics(outcome.metrics)
    say(f"\nexample row {json.dumps(outcome.row, ensure_ascii=False)}")
    answer = ", ".join(f"{name} {value:.4f}" for name, value in outcome.prediction.items())
    say(f"prediction  {answer}\n")
    for name, path in (
        ("report", outcome.paths.evaluation / "report.html"),
        ("metrics", outcome.paths.evaluation / "metrics.json"),
        ("model", outcome.model),
        ("training", outcome.paths.train),
        ("data set", outcome.paths.dataset),
    ):
        say(f"{name:<11} {path}")
