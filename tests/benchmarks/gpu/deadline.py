"""Time limits: of the whole measurement, of a section, of one piece of work that would hang."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class OutOfTime(Exception):
    """The time of a section is used up."""


class Deadline:
    """A point in time before which work must end.

    Args:
        seconds: time from now.
        clock: returns seconds.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.end = clock() + seconds

    @property
    def left(self) -> float:
        """Seconds that are left, never negative."""
        return max(self.end - self.clock(), 0.0)

    def within(self, seconds: float) -> Deadline:
        """Return a deadline `seconds` from now, or this one if it comes first."""
        return Deadline(min(seconds, self.left), self.clock)

    def check(self, seconds: float, work: str) -> None:
        """Refuse to begin work that takes longer than the time left.

        Raises:
            OutOfTime: it does. The message names the work.
        """
        if self.left < seconds:
            raise OutOfTime(f"{work} takes about {seconds:.0f} s, and {self.left:.0f} s are left")

    @contextmanager
    def enforced(self) -> Iterator[None]:
        """Interrupt the block at the deadline, a hanging compilation too. Threads but the main one cannot.

        Raises:
            OutOfTime: the block was interrupted.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        former = signal.signal(signal.SIGALRM, _raise)
        signal.setitimer(signal.ITIMER_REAL, max(self.left, 1e-3))
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, former)


def _raise(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise OutOfTime("it was interrupted at its deadline")
