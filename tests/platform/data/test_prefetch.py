"""A thread that makes batches ahead."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from causalfusion_platform.data.prefetch import read_ahead


def test_batches_come_in_order_and_start_before_they_are_asked_for() -> None:
    started = threading.Event()

    def numbers() -> Iterator[int]:
        started.set()
        yield from range(20)

    batches = read_ahead(numbers(), 3)
    assert started.wait(30)
    assert list(batches) == list(range(20))


def test_no_more_are_made_than_are_asked_for() -> None:
    made: list[int] = []
    released = threading.Semaphore(0)

    def numbers() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            released.release()
            yield number

    batches = read_ahead(numbers(), 2)
    assert next(batches) == 0
    # Two wait, and the thread holds another.
    assert all(released.acquire(timeout=30) for _ in range(4))
    assert not released.acquire(timeout=0.5)
    assert made == [0, 1, 2, 3]
    batches.close()


def test_an_error_reaches_whoever_asks() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise OSError("gone")

    batches = read_ahead(broken(), 4)
    assert next(batches) == 1
    with pytest.raises(OSError, match="gone"):
        next(batches)


def test_the_thread_ends_with_the_iterator() -> None:
    closed = threading.Event()

    def endless() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    batches = read_ahead(endless(), 1)
    assert next(batches) == 1
    batches.close()
    assert closed.wait(30)
