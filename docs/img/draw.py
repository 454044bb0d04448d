"""Draw the pictures of the documentation: `make docs`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

HERE = Path(__file__).parent
BLUE, ORANGE, GREY, DARK = "#2563a8", "#c8641e", "#8a8f98", "#333a44"
STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "clsd",
    "svg.fonttype": "path",
}


def save(figure: Figure, name: str) -> None:
    """Write a picture as SVG with a white ground, so that it can be read on a dark page."""
    figure.savefig(HERE / f"{name}.svg", metadata={"Date": None}, facecolor="white")


def boxes(axes: Any, items: list[tuple[float, float, str, str]], width: float, height: float) -> None:
    """Labelled boxes by their centres."""
    for x, y, text, colour in items:
        axes.add_patch(
            FancyBboxPatch(
                (x - width / 2, y - height / 2),
                width,
                height,
                boxstyle="round,pad=0.02,rounding_size=0.08",
                facecolor=colour,
                edgecolor="none",
                alpha=0.16,
            )
        )
        axes.text(x, y, text, ha="center", va="center", color=DARK, fontsize=9.5, linespacing=1.35)


def arrow(axes: Any, start: tuple[float, float], end: tuple[float, float], text: str = "", **style: Any) -> None:
    """An arrow with a word above its middle."""
    axes.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color=style.get("color", GREY), linewidth=1.3)
    )
    if text:
        x, y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + style.get("lift", 0.12)
        axes.text(x, y, text, ha="center", va="bottom", color=DARK, fontsize=8.5)


def canvas(width: float, height: float) -> tuple[Figure, Any]:
    """Axes without axes, in inches."""
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    return figure, axes


def pipeline() -> None:
    """The stages and their files."""
    figure, axes = canvas(9.6, 2.6)
    names = [
        (1.0, "click logs\njsonl · csv\nparquet · avro", GREY),
        (3.5, "data set\nTFRecords\ndataset.json", BLUE),
        (6.0, "run\ncheckpoints\nrun.json", BLUE),
        (8.5, "model\nSavedModel\nexport/<version>", ORANGE),
    ]
    boxes(axes, [(x, 1.75, text, colour) for x, text, colour in names], 1.6, 0.95)
    for x, command in ((1.85, "preprocess\n(Beam)"), (4.35, "train\n(Keras)"), (6.85, "export\n(canary)")):
        arrow(axes, (x, 1.75), (x + 0.8, 1.75), command)
    boxes(
        axes, [(6.0, 0.45, "report.html\nmetrics.json", GREY), (3.5, 0.45, "compare.json\nreport.html", GREY)], 1.6, 0.6
    )
    boxes(axes, [(8.5, 0.45, "score · ctr · confidence", GREY)], 1.9, 0.6)
    for x, command in ((3.5, "compare"), (6.0, "evaluate"), (8.5, "predict · score")):
        arrow(axes, (x, 1.22), (x, 0.8))
        axes.text(x + 0.1, 1.0, command, ha="left", va="center", color=DARK, fontsize=8.5)
    save(figure, "pipeline")


def weight() -> None:
    """w over q for three blends, c = 0.1."""
    figure = Figure(figsize=(5.4, 3.2), layout="constrained")
    axes = figure.subplots()
    q, c = np.linspace(0, 0.5, 400), 0.1
    for blend, colour, label in (
        (0.0, GREY, "blend 0: plain"),
        (1.0, BLUE, "blend 1: default"),
        (np.inf, ORANGE, "blend .inf"),
    ):
        a = np.clip(q, 0.02 * c, 5 * c)
        w = a / c if np.isinf(blend) else (1 + blend * a / c) / (1 + blend)
        axes.plot(q, w, color=colour, label=label)
    axes.axvline(c, color=GREY, linewidth=1, linestyle="--")
    axes.text(c + 0.005, 4.6, "c, the mean click", color=DARK, fontsize=9)
    axes.set(xlabel="teacher's score q of the click", ylabel="weight w of the click", ylim=(0, 5.2))
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(0.24, 0.86))
    save(figure, "weight")


def calibration() -> None:
    """The shift of the optimum by log w, and its correction: odds(p) = w odds(eta)."""
    figure = Figure(figsize=(4.6, 3.4), layout="constrained")
    axes = figure.subplots()
    eta = np.linspace(0.005, 0.6, 200)
    w = (1 + eta / eta.mean()) / 2
    odds = w * eta / (1 - eta)
    axes.plot([0, 0.65], [0, 0.65], color=GREY, linewidth=1, linestyle="--", label="perfect")
    axes.plot(odds / (1 + odds), eta, color=ORANGE, label="score, as trained")
    axes.plot(eta, eta, color=BLUE, linewidth=2.4, alpha=0.7, label="ctr, corrected")
    axes.set(xlabel="predicted CTR", ylabel="real CTR", xlim=(0, 0.7), ylim=(0, 0.65))
    axes.legend(frameon=False)
    save(figure, "calibration")


def step() -> None:
    """What one training step computes, and where gradients stop."""
    figure, axes = canvas(9.6, 3.2)
    boxes(axes, [(0.95, 1.6, "batch\nids, values\nlabel y", GREY)], 1.5, 1.0)
    boxes(axes, [(3.1, 2.55, "teacher\nq, no gradient", BLUE), (3.1, 1.6, "student\nlogit s", BLUE)], 1.7, 0.7)
    boxes(axes, [(3.1, 0.6, "AdGate\ncorrection g", ORANGE)], 1.7, 0.7)
    boxes(axes, [(5.6, 2.5, "weights\na = clip(q + g)\nw = blend of a / c", GREY)], 1.9, 1.0)
    boxes(axes, [(8.2, 2.1, "CTR loss\n- y w log p\n- (1 - y) log (1 - p)", BLUE)], 2.2, 1.0)
    boxes(axes, [(8.2, 0.6, "gate loss\n(q + g - mean)²", ORANGE)], 2.2, 0.7)
    for y in (2.55, 1.6, 0.6):
        arrow(axes, (1.75, 1.6), (2.2, y))
    arrow(axes, (4.0, 2.55), (4.6, 2.55))
    arrow(axes, (4.0, 0.7), (4.7, 1.95))
    arrow(axes, (4.0, 1.6), (7.05, 1.75))
    arrow(axes, (6.6, 2.45), (7.05, 2.3))
    arrow(axes, (4.0, 0.6), (7.05, 0.6))
    axes.text(8.2, 1.45, "updates the student alone", ha="center", color=BLUE, fontsize=8.5)
    axes.text(8.2, 0.1, "updates AdGate alone", ha="center", color=ORANGE, fontsize=8.5)
    save(figure, "step")


if __name__ == "__main__":
    with matplotlib.rc_context(STYLE):
        for draw in (pipeline, weight, calibration, step):
            draw()
