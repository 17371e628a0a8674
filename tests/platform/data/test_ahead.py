"""Items made ahead by a thread: their order, faults, and the end of the thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from causalfusion_platform.data.ahead import ahead


class Numbers:
    """0, 1, 2 …, which notes how many were made, and on which thread."""

    def __init__(self, fault: tuple[int, BaseException] | None = None) -> None:
        self.made = 0
        self.threads: set[int] = set()
        self.fault = fault
        self.closed = threading.Event()

    def __iter__(self) -> Iterator[int]:
        try:
            while True:
                if self.fault is not None and self.made == self.fault[0]:
                    raise self.fault[1]
                self.threads.add(threading.get_ident())
                self.made += 1
                yield self.made - 1
        finally:
            self.closed.set()


def settled(numbers: Numbers, made: int) -> None:
    """Wait until so many are made, and no more."""
    until = time.monotonic() + 10
    while numbers.made < made and time.monotonic() < until:
        time.sleep(0.005)
    time.sleep(0.05)
    assert numbers.made == made


@pytest.mark.parametrize("count", [1, 3])
def test_a_thread_makes_a_few_ahead_and_in_order(count: int) -> None:
    numbers = Numbers()
    items = ahead(iter(numbers), count)
    assert numbers.made == 0
    assert next(items) == 0
    settled(numbers, count + 2)  # taken, ready, and the one that waits for room
    assert [next(items) for _ in range(5)] == [1, 2, 3, 4, 5]
    settled(numbers, count + 7)
    assert threading.get_ident() not in numbers.threads
    items.close()


def test_all_items_come_and_then_the_end() -> None:
    assert list(ahead(iter(range(20)))) == list(range(20))
    assert list(ahead(iter(()))) == []


@pytest.mark.parametrize("error", [ValueError("a bad row"), KeyboardInterrupt()])
def test_an_error_is_raised_behind_the_items_before_it(error: BaseException) -> None:
    items = ahead(iter(Numbers((3, error))), 2)
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(type(error)) as caught:
        next(items)
    assert caught.value is error


def test_closing_ends_the_thread() -> None:
    numbers = Numbers()
    before = threading.active_count()
    items = ahead(iter(numbers))
    next(items)
    items.close()
    until = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < until:
        time.sleep(0.01)
    assert threading.active_count() == before
