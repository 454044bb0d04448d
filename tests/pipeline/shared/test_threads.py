"""Work on several threads: order, errors and reading ahead are those of one thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from clsd.pipeline.shared.threads import Threads


@pytest.mark.parametrize("number", [1, 2, 5])
def test_results_come_in_the_order_of_the_items(number: int) -> None:
    first = threading.Event()

    def work(item: int) -> int:
        if number > 1 and item == 0:
            first.wait(10)  # the first item ends last
        if item == 1:
            first.set()
        return item * item

    assert list(Threads(number).map(work, range(100))) == [item * item for item in range(100)]
    assert list(Threads(number).map(work, [])) == []


@pytest.mark.parametrize("number", [1, 3])
def test_the_first_error_is_raised_where_its_result_would_have_been(number: int) -> None:
    result = Threads(number).map(lambda item: 1 // item, [1, 1, 0, 0, 1])
    assert [next(result), next(result)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(result)


@pytest.mark.parametrize(("number", "most"), [(1, 1), (2, 6)])
def test_items_are_not_read_far_ahead(number: int, most: int) -> None:
    read = []

    def items() -> Iterator[int]:
        for item in range(1000):
            read.append(item)
            yield item

    result = Threads(number, ahead=3).map(lambda item: item, items())
    next(result)
    assert len(read) == most
