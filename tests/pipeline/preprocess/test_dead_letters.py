"""Dead letters by the many: in the order of the logs, whatever order they are found in, and few of them in memory."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest

from clsd.pipeline.preprocess import dead_letters
from clsd.pipeline.preprocess.dead_letters import DEAD_LETTERS, Collector, Letters, Refused, write_dead_letters
from clsd.pipeline.preprocess.input_splits import Piece
from clsd.pipeline.preprocess.spill import SPILL


def _letters(path: str, lines: range) -> list[Refused]:
    return [Refused(path, line, f"reason {line % 3}", f"text “{line}”") for line in lines]


def test_they_are_written_in_the_order_of_the_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_letters, "TOGETHER", 10)
    (tmp_path / SPILL).mkdir()
    pieces = [
        (Piece("a", 0, "jsonl"), _letters("a", range(1, 25))),
        (Piece("a", 1, "jsonl", start=900), _letters("a", range(25, 26))),
        (Piece("b", 2, "jsonl"), _letters("b", range(1, 31))),
    ]
    laid: list[Letters] = []
    for piece, letters in pieces:
        collector = Collector(str(tmp_path), piece)
        for start in range(0, len(letters), 5):  # in each few, those that do not parse come first
            for letter in sorted(letters[start : start + 5], key=lambda letter: letter.reason):
                laid += collector.take(letter)
        laid += collector.rest()
    assert len(laid) == 3 + 1 + 3
    assert max(letters.laid.rows for letters in laid) == 10
    random.Random(1).shuffle(laid)
    told = write_dead_letters(str(tmp_path), (0, laid))
    everything = [letter for _, letters in pieces for letter in letters]
    lines = gzip.decompress((tmp_path / DEAD_LETTERS).read_bytes()).decode().splitlines()
    assert [Refused(**json.loads(line)) for line in lines] == everything
    assert told["rows"] == len(everything) and told["first"] == everything[0].__dict__
    assert told["reasons"] == {
        f"reason {r}": sum(letter.reason == f"reason {r}" for letter in everything) for r in range(3)
    }
