"""The plots of the reports, as SVG text for embedding in a page."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.dates import ConciseDateFormatter
from matplotlib.figure import Figure

from clsd.pipeline.shared.progress import printable

_LONGEST_LABEL = 40
BLUE, ORANGE, GREY = "#2563a8", "#c8641e", "#8a8f98"

_STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": "#333a44",
    "xtick.color": "#333a44",
    "ytick.color": "#333a44",
    "svg.fonttype": "path",  # text as paths: the page needs no fonts
    "svg.hashsalt": "clsd",  # the same plot gives the same bytes
}


@contextmanager
def _picture(width: float = 5.2, height: float = 3.6) -> Iterator[tuple[Any, list[str]]]:
    """The axes of a new figure, and a list that holds its SVG after the block."""
    out: list[str] = []
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure.subplots(), out
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            svg = _svg(figure)
        if any("missing from font" in str(one.message) for one in warned):  # the reader's browser has a font for it
            with matplotlib.rc_context({"svg.fonttype": "none"}), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                svg = _svg(figure)
    # Drop the XML declaration and the metadata: an embedded SVG does not need them.
    out.append(re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL))


def _svg(figure: Figure) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def _literal(name: str) -> str:
    """A name of the log or the config as a label: dollars do not begin a formula, and a long name is cut."""
    one_line = printable(name).replace("\n", " ")
    cut = one_line if len(one_line) <= _LONGEST_LABEL else one_line[: _LONGEST_LABEL - 1] + "…"
    return cut.replace("$", r"\$")


def calibration(curves: dict[str, list[list[float]]]) -> str:
    """Real against predicted CTR in bins of equally many rows, on logarithmic axes."""
    with _picture() as (axes, out):
        points = [point for curve in curves.values() for point in curve]
        positive = [v for p in points for v in p[:2] if v > 0]
        low, high = (min(positive) / 1.5, min(1.0, max(positive) * 1.5)) if positive else (1e-3, 1.0)
        axes.plot([low, high], [low, high], color=GREY, linewidth=1, linestyle="--", label="perfect")
        styles = {"score": (ORANGE, "o", "score, as trained"), "ctr": (BLUE, "s", "ctr, corrected for the weights")}
        for name, curve in curves.items():
            colour, marker, label = styles[name]
            shown = [(p, r) for p, r, _ in curve if r > 0 and p > 0]
            if shown:
                axes.plot(
                    *zip(*shown, strict=True), color=colour, marker=marker, markersize=4, linewidth=1.2, label=label
                )
        axes.set(
            xscale="log", yscale="log", xlabel="predicted CTR", ylabel="real CTR", xlim=(low, high), ylim=(low, high)
        )
        axes.legend(frameon=False)
    return out[0]


def days(by_split: dict[str, list[Any]]) -> str:
    """Rows of each day, coloured by split, and the day's CTR."""
    colours = {"train": BLUE, "validation": GREY, "test": ORANGE}
    with _picture(width=9.0, height=2.8) as (axes, out):
        counts: dict[Any, list[int]] = {}
        for split, result in by_split.items():
            dates = [np.datetime64(day) for day, _, _ in result]
            below = [counts.get(day, [0, 0])[0] for day in dates]
            rows = [n for _, n, _ in result]
            axes.bar(dates, rows, bottom=below, color=colours[split], alpha=0.6, width=1.0, linewidth=0, label=split)
            for day, (_, n, clicks) in zip(dates, result, strict=True):
                before = counts.get(day, [0, 0])
                counts[day] = [before[0] + n, before[1] + clicks]
        axes.set_ylabel("rows a day")
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(axes.xaxis.get_major_locator()))
        axes.margins(x=0.01)
        right = axes.twinx()
        right.spines["right"].set_visible(True)
        dates = sorted(counts)
        right.plot(dates, [100 * counts[d][1] / counts[d][0] for d in dates], color="#333a44", linewidth=1)
        right.set_ylabel("CTR, %")
        right.set_ylim(bottom=0)
    return out[0]


def confidence_by_group(groups: dict[str, dict[str, Any]]) -> str:
    """Mean, median, quartiles and deciles of the clicks' confidence, one row per group."""
    shown = [(name, result["confidence"]) for name, result in groups.items() if result["confidence"]["rows"]]
    with _picture(height=1.2 + 0.34 * max(len(shown), 2)) as (axes, out):
        for row, (_, c) in enumerate(shown):
            axes.plot([c["p10"], c["p90"]], [row, row], color=GREY, linewidth=1)
            axes.plot([c["p25"], c["p75"]], [row, row], color=BLUE, linewidth=6, alpha=0.5, solid_capstyle="butt")
            axes.plot(c["median"], row, color=BLUE, marker="|", markersize=12, markeredgewidth=2)
            axes.plot(c["mean"], row, color=ORANGE, marker="o", markersize=4)
        axes.axvline(1.0, color=GREY, linewidth=1, linestyle="--")
        axes.set_yticks(range(len(shown)), [f"{_literal(name)} ({c['rows']:,})" for name, c in shown])
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.set_xlabel("confidence of clicks (1: the mean click in training)")
    return out[0]


def training_curves(history: list[dict[str, Any]], warmup_epochs: float, best: int) -> str:
    """Training loss and validation AUC by epoch. The warm-up is shaded, the best epoch marked."""
    epochs = [entry["epoch"] for entry in history]
    with _picture() as (axes, out):
        if warmup_epochs > 0:
            axes.axvspan(
                0.5, min(warmup_epochs, epochs[-1]) + 0.5, color=GREY, alpha=0.12, linewidth=0, label="warm-up"
            )
        loss = [entry["train"]["loss"] for entry in history]
        axes.plot(epochs, loss, color=ORANGE, marker="o", markersize=3, label="training loss (left)")
        axes.set(xlabel="epoch", ylabel="training loss", xlim=(0.5, epochs[-1] + 0.5))
        axes.xaxis.get_major_locator().set_params(integer=True)
        lines, labels = axes.get_legend_handles_labels()
        result = [(e["epoch"], e["validation"]["auc"]) for e in history if "auc" in e["validation"]]
        if result:
            right = axes.twinx()
            right.spines["right"].set_visible(True)
            right.plot(*zip(*result, strict=True), color=BLUE, marker="s", markersize=3, label="validation AUC (right)")
            right.axvline(best, color=BLUE, linewidth=1, linestyle=":", label="best epoch")
            right.set_ylabel("validation AUC")
            more = right.get_legend_handles_labels()
            lines, labels = lines + more[0], labels + more[1]
        axes.legend(lines, labels, frameon=False, loc="center right")
    return out[0]


def intervals(differences: dict[str, dict[str, Any]], title: str, scale: float, unit: str, alpha: float) -> str:
    """Mean difference and its interval, one row per variant. A filled dot marks a corrected p below ``alpha``.

    Args:
        differences: differences by variant, as in ``compare.json``.
        title: label of the metric.
        scale, unit: scale and unit of the axis.
        alpha: significance level of the test.
    """
    with _picture(height=1.1 + 0.27 * max(len(differences), 2)) as (axes, out):
        axes.axvline(0.0, color=GREY, linewidth=1, linestyle="--")
        for row, result in enumerate(differences.values()):
            beyond = result["p_corrected"] is not None and result["p_corrected"] < alpha
            if result["low"] is not None:
                axes.plot([scale * result["low"], scale * result["high"]], [row, row], color=BLUE, linewidth=1.4)
            face = BLUE if beyond else "white"
            axes.plot(scale * result["mean"], row, "o", color=BLUE, markersize=6, markerfacecolor=face)
        axes.set_yticks(range(len(differences)), [_literal(name) for name in differences])
        axes.set_ylim(len(differences) - 0.5, -0.5)
        axes.set_title(title, loc="left", fontsize=11)
        axes.set_xlabel(f"difference, {unit}")
        # A collapsed variant would squeeze all others: it lies outside the axis, and a number shows its value.
        ends = sorted(abs(scale * result["mean"]) for result in differences.values())
        while len(ends) > 2 and ends[-1] > 4 * ends[-2]:
            ends.pop()
        limit = 1.6 * ends[-1] if ends and ends[-1] > 0 else 1.0
        axes.set_xlim(-limit, limit)
        for row, result in enumerate(differences.values()):
            if abs(scale * result["mean"]) > limit:
                edge = -limit if result["mean"] < 0 else limit
                text = f"{scale * result['mean']:+.0f} "
                axes.annotate(
                    text, (edge, row), color=ORANGE, va="center", ha="left" if edge < 0 else "right", fontsize=9
                )
    return out[0]
