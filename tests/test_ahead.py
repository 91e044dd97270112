"""Work ahead of its use: in order, bounded, and with the first error in that order."""

import threading
import time
from collections.abc import Iterator

import pytest

from simo_build.ahead import ahead


def test_results_come_in_order_whatever_takes_longer() -> None:
    def work(item: int) -> int:
        time.sleep(0.002 * (item % 3 == 0))
        return item * item

    assert list(ahead(work, range(30), workers=4)) == [item * item for item in range(30)]


def test_work_is_done_at_the_same_time() -> None:
    both = threading.Barrier(2, timeout=10)
    assert len(list(ahead(lambda _: both.wait(), range(2), workers=2))) == 2


def test_no_more_is_taken_than_the_bound() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(100):
            taken.append(item)
            yield item

    results = ahead(str, items(), workers=2)
    for used in range(1, 20):
        next(results)
        assert len(taken) <= used + 2 * 2
    results.close()  # type: ignore[attr-defined]  # it is a generator
    assert len(taken) < 30


def test_the_first_error_in_order_ends_it() -> None:
    def work(item: int) -> int:
        if item >= 3:
            time.sleep(0.01 * (item == 3))
            raise ValueError(str(item))
        return item

    results = ahead(work, range(9), workers=4)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match=r"^3$"):
        next(results)


def test_nothing_gives_nothing() -> None:
    assert list(ahead(str, [])) == []
