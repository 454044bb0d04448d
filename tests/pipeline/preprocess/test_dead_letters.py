"""Many dead letters: written in the order of the logs, with few of them in memory."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest

from clsd.pipeline.preprocess import dead_letters
from clsd.pipeline.preprocess.dead_letters import (
    DEAD_LETTERS,
    DeadLetter,
    DeadLetterBatch,
    DeadLetterWriter,
    write_dead_letters,
)
from clsd.pipeline.preprocess.input_splits import InputSplit
from clsd.pipeline.preprocess.spill import SPILL


def _letters(path: str, lines: range) -> list[DeadLetter]:
    return [DeadLetter(path, line, f"reason {line % 3}", f"text “{line}”") for line in lines]


def test_they_are_written_in_the_order_of_the_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_letters, "TOGETHER", 10)
    (tmp_path / SPILL).mkdir()
    input_splits = [
        (InputSplit("a", 0, "jsonl"), _letters("a", range(1, 25))),
        (InputSplit("a", 1, "jsonl", start=900), _letters("a", range(25, 26))),
        (InputSplit("b", 2, "jsonl"), _letters("b", range(1, 31))),
    ]
    spilled: list[DeadLetterBatch] = []
    for input_split, refused in input_splits:
        collector = DeadLetterWriter(str(tmp_path), input_split)
        for start in range(0, len(refused), 5):  # in each few, those that do not parse come first
            for dead_letter in sorted(refused[start : start + 5], key=lambda dead_letter: dead_letter.reason):
                spilled += collector.take(dead_letter)
        spilled += collector.rest()
    assert len(spilled) == 3 + 1 + 3
    assert max(batch.spilled.rows for batch in spilled) == 10
    random.Random(1).shuffle(spilled)
    summary = write_dead_letters(str(tmp_path), (0, spilled))
    everything = [dead_letter for _, refused in input_splits for dead_letter in refused]
    lines = gzip.decompress((tmp_path / DEAD_LETTERS).read_bytes()).decode().splitlines()
    assert [DeadLetter(**json.loads(line)) for line in lines] == everything
    assert summary["rows"] == len(everything) and summary["first"] == everything[0].__dict__
    assert summary["reasons"] == {
        f"reason {r}": sum(dead_letter.reason == f"reason {r}" for dead_letter in everything) for r in range(3)
    }
