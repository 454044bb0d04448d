"""What the terminal says of a job under way."""

from __future__ import annotations

import pytest

from pipeline.progress import PLANNED, READ, stage_of


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ({}, ""),
        ({PLANNED: 8}, "reading"),
        ({PLANNED: 8, READ: 4, "rows read": 500}, "reading, about 70 s left"),  # an eighth of the whole in 10 s
        ({PLANNED: 8, READ: 8, "rows read": 1000}, "counting, about 30 s left"),
        ({PLANNED: 8, READ: 8, "rows read": 1000, "rows counted": 1000}, "encoding, about 10 s left"),
        (
            {PLANNED: 8, READ: 8, "rows read": 1000, "rows counted": 1000, "rows encoded": 1000, "rows written": 500},
            "writing, about 1 s left",
        ),
        (
            {PLANNED: 8, READ: 8, "rows read": 1000, "rows counted": 5000, "rows encoded": 5000, "rows written": 5000},
            "finishing",
        ),  # negatives
        ({PLANNED: 8, READ: 8, "rows read": 0}, "counting, about 30 s left"),
    ],
)
def test_the_stage_and_what_is_left_of_it(counts: dict[str, int], said: str) -> None:
    assert stage_of(counts, 10.0).replace("[dim]", "").replace("[/dim]", "").strip() == said
