"""What the sides of `benchmarks/peers.py` share: their data, their clock, what they tell. Needs NumPy alone.

A side is a program of its own: it trains one backbone for an epoch on the arrays of an .npz file and writes, as JSON, its rows a
second, and, beside it, its scores of the test rows.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

BATCH, DIM, HIDDEN, CROSSES = 4096, 16, (256, 128, 64), 3
#: Steps before the clock starts: compiling, first touches.
UNTIMED = 20


class Clock:
    """The end of every step; the rate is that of the steps after the first :data:`UNTIMED`."""

    def __init__(self) -> None:
        self._ends: list[tuple[int, float]] = []

    def tick(self, steps: int = 1) -> None:
        """So many steps have ended."""
        before = self._ends[-1][0] if self._ends else 0
        self._ends.append((before + steps, time.perf_counter()))

    def rate(self) -> float:
        """Rows a second."""
        first, last = next(end for end in self._ends if end[0] >= UNTIMED), self._ends[-1]
        return BATCH * (last[0] - first[0]) / (last[1] - first[1])


def run(side: Callable[[str, Any, int, Clock], Any]) -> None:
    """Run a side: ``python SIDE DATA.npz OUT.json BACKBONE SEED``.

    Args:
        side: of (deepfm or dcn_v2, the arrays, a seed, a clock to tick); gives the scores of the test rows, any that rise with
            the CTR.
    """
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("data", type=Path, help="train_ids, train_values, train_label, the same of test, and sizes")
    parser.add_argument("out", type=Path)
    parser.add_argument("backbone", choices=["deepfm", "dcn_v2"])
    parser.add_argument("seed", type=int)
    parser.add_argument(
        "--rate", type=float, default=1e-3, help="learning rate of Adam; this project's side: of the tables"
    )
    parser.add_argument("--precision", default="float32", help="of this project's side")
    parser.add_argument("--tables", default="lazy_adam", help="optimizer of this project's side")
    args = parser.parse_args()
    with np.load(args.data) as file:
        data = dict(file) | {"rate": args.rate, "precision": args.precision, "tables": args.tables}
    clock = Clock()
    scores = np.asarray(side(args.backbone, data, args.seed, clock), np.float32).reshape(-1)
    np.save(args.out.with_suffix(".npy"), scores)
    args.out.write_text(json.dumps({"rate": clock.rate()}))


def columns(data: Any, split: str) -> dict[str, Any]:
    """The arrays of a split as one column a feature, by name: c0 ... are ids, x0 ... are numbers."""
    ids, values = data[f"{split}_ids"], data[f"{split}_values"]
    return {f"c{i}": ids[:, i] for i in range(ids.shape[1])} | {f"x{i}": values[:, i] for i in range(values.shape[1])}
