"""What all benchmarks share: paired rounds, medians, a table, and the last lines for scripts.

Both sides are measured in one run, in turn (A B B A ...), so that a machine that slows down slows both. The last lines are
``name ratio goal holds|falls short``, one per goal. The exit code is 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Goal:
    """A ratio of two sides' rates and what it should reach.

    Args:
        name: on the last line.
        ratio: measured, the median of the rounds' ratios.
        goal: the least (or, with ``at_most``, the largest) ratio that is good.
        at_most: whether smaller is better.
    """

    name: str
    ratio: float
    goal: float
    at_most: bool = False

    @property
    def holds(self) -> bool:
        return self.ratio <= self.goal if self.at_most else self.ratio >= self.goal

    def line(self) -> str:
        return f"{self.name} {self.ratio:.4g} {self.goal:g} {'holds' if self.holds else 'falls short'}"


def arguments(description: str) -> argparse.Namespace:
    """``--quick`` for a smaller run, ``--json FILE`` for the figures."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="fewer rows and rounds; for a look, not for a claim")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all figures there")
    return parser.parse_args()


def rates(
    sides: dict[str, Callable[[], int]], rounds: int, before: Callable[[str], object] = lambda side: None
) -> dict[str, list[float]]:
    """Units a second of each side in each round; a side is a function that works and returns how many units it did.

    One round first is not counted: it warms caches and compiles. Each round takes the sides in another order, so that
    neither a drift nor being first favours one. ``before`` is given a side's name and makes ready for it, untimed.
    """
    result: dict[str, list[float]] = {name: [] for name in sides}
    orders = itertools.cycle(itertools.permutations(sides))
    for number, order in zip(range(rounds + 1), orders, strict=False):
        for name in order:
            before(name)
            start = time.perf_counter()
            units = sides[name]()
            if number:
                result[name].append(units / (time.perf_counter() - start))
    return result


def median_ratio(result: dict[str, list[float]], above: str, below: str) -> float:
    """Median over the rounds of one side's rate divided by the other's of the same round."""
    return statistics.median(a / b for a, b in zip(result[above], result[below], strict=True))


def show(title: str, unit: str, result: dict[str, list[float]]) -> None:
    """Print the table of sides that were measured together."""
    table = Table(title=title, title_justify="left", box=None)
    table.add_column("side")
    for column in ("median", "lowest", "highest"):
        table.add_column(f"{column}, {unit}", justify="right")
    first = next(iter(result))
    table.add_column(f"{first} is faster by", justify="right")
    for name, values in result.items():
        metrics = (f"{value:,.0f}" for value in (statistics.median(values), min(values), max(values)))
        table.add_row(name, *metrics, "" if name == first else f"{median_ratio(result, first, name):.4g}")
    Console().print(table)


def finish(unit: str, result: dict[str, list[float]], goals: list[Goal], out: Path | None) -> None:
    """Write JSON if asked, print the goals' lines and leave with the exit code that scripts expect."""
    if out:
        out.write_text(json.dumps({"rates": result, "unit": unit, "goals": [asdict(goal) for goal in goals]}, indent=2))
    for goal in goals:
        print(goal.line())
    sys.exit(0 if all(goal.holds for goal in goals) else 1)


def conclude(title: str, unit: str, result: dict[str, list[float]], goals: list[Goal], out: Path | None) -> None:
    """The end of a benchmark of one table: :func:`show`, then :func:`finish`."""
    show(title, unit, result)
    finish(unit, result, goals, out)
