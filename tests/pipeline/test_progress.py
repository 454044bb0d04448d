"""What the terminal says of a job under way."""

from __future__ import annotations

import pytest

from pipeline.progress import PLANNED, READ, stage_of


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ({}, ""),
        ({PLANNED: 8}, "reading"),
        ({PLANNED: 8, READ: 4, "rows read": 500}, "reading, about 50 s left"),  # a sixth of the whole in 10 s
        ({PLANNED: 8, READ: 8, "rows read": 1000}, "encoding, about 20 s left"),
        (
            {PLANNED: 8, READ: 8, "rows read": 1000, "rows encoded": 1000, "rows written": 500},
            "writing, about 2 s left",
        ),
        (
            {PLANNED: 8, READ: 8, "rows read": 1000, "rows encoded": 5000, "rows written": 5000},
            "finishing",
        ),  # negatives
        ({PLANNED: 8, READ: 8, "rows read": 0}, "encoding, about 20 s left"),
    ],
)
def test_the_stage_and_what_is_left_of_it(counts: dict[str, int], said: str) -> None:
    assert stage_of(counts, 10.0).replace("[dim]", "").replace("[/dim]", "").strip() == said
