"""Time limits of `make bench-gpu`."""

from __future__ import annotations

import signal

import pytest
from tests.benchmarks.gpu.deadline import Deadline, OutOfTime


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_part_ends_no_later_than_the_whole() -> None:
    clock = Clock()
    whole = Deadline(50, clock)
    part = whole.within(30)
    clock.now += 10
    assert (whole.left, part.left) == (40, 20)
    assert whole.within(1000).left == 40
    clock.now += 100
    assert (whole.left, part.left) == (0, 0)


def test_work_that_takes_longer_than_the_time_left_is_refused() -> None:
    clock = Clock()
    deadline = Deadline(50, clock)
    deadline.check(50, "a step")
    clock.now += 1
    with pytest.raises(OutOfTime, match="a step takes about 50 s, and 49 s are left"):
        deadline.check(50, "a step")


def test_hanging_work_is_interrupted_and_the_signal_given_back() -> None:
    former = signal.getsignal(signal.SIGALRM)
    with pytest.raises(OutOfTime, match="interrupted"), Deadline(0.05).enforced():
        while True:
            pass
    assert signal.getsignal(signal.SIGALRM) == former
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_work_that_ends_in_time_is_left_alone() -> None:
    with Deadline(1000).enforced():
        done = True
    assert done
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
