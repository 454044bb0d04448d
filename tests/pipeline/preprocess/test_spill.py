"""Batches on disk between two stages are read back unchanged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from clsd.pipeline.preprocess.spill import SPILL, OverSpilled, load, spill
from clsd.pipeline.preprocess.splits import TimeBoundaries


@pytest.fixture
def directory(tmp_path: Path) -> str:
    (tmp_path / SPILL).mkdir()
    return str(tmp_path)


def test_what_is_loaded_is_what_was_laid_down(directory: str) -> None:
    whole = pa.record_batch(
        {
            "word": pa.array(["a", None, "b", "a", "c", "b"]).dictionary_encode(),
            "list": pa.array([[1], [], None, [2, 3], [4], [5]]),
            "n": pa.array([0.5, None, 2.5, 3.5, 4.5, 5.5]),
        }
    )
    parts = [whole.take(pa.array(np.array(places))) for places in ([1, 0], [5, 2, 3], [4])]
    written = spill(directory, parts)
    assert [spilled.rows for spilled in written] == [2, 3, 1]
    assert [load(spilled).to_pydict() for spilled in written[::-1]] == [part.to_pydict() for part in parts[::-1]]


def test_empty_batches_are_not_laid_down(directory: str) -> None:
    batch = pa.record_batch({"n": [1, 2]})
    assert spill(directory, [batch.slice(0, 0)]) == []
    assert list((Path(directory) / SPILL).iterdir()) == []
    assert [spilled.rows for spilled in spill(directory, [batch.slice(0, 0), batch, batch.slice(1, 1)])] == [2, 1]


def test_a_second_attempt_leaves_the_first_as_it_was(directory: str) -> None:
    (first,) = spill(directory, [pa.record_batch({"n": [1]})])
    (second,) = spill(directory, [pa.record_batch({"n": [2]})])
    assert (load(first).column("n")[0].as_py(), load(second).column("n")[0].as_py()) == (1, 2)


def test_a_combiner_over_what_is_spilled_gives_what_it_gives_over_batches(directory: str) -> None:
    from clsd.pipeline.shared.config import SplitSettings

    plain = TimeBoundaries(SplitSettings(validation=0.2, test=0.2))
    over = OverSpilled(plain)
    batches = [pa.record_batch({"_time": pa.array(range(start, start + 50))}) for start in (0, 50)]
    result = over.create_accumulator()
    expected = plain.create_accumulator()
    for batch in batches:
        result = over.add_input(result, spill(directory, [batch])[0])
        expected = plain.add_input(expected, batch)
    assert over.extract_output(over.merge_accumulators([result])) == plain.extract_output(expected) == (60, 80)
