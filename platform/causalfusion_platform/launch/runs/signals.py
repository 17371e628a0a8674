"""Requests to stop that come as signals: SIGTERM from a scheduler, SIGINT from a person."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from ...train.control import StopReason

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Request to stop the run with a checkpoint."""

    def __init__(self) -> None:
        self.reason: StopReason | None = None
        self.on_request: Callable[[StopReason], None] = lambda _: None

    def ask(self, reason: StopReason) -> None:
        """Request the stop, and call `on_request`."""
        self.reason = reason
        self.on_request(reason)


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn the first SIGTERM or SIGINT into a request to stop. The second one ends the process.

    Outside the main thread, as in a trial of a sweep, signals are left alone.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    signalled = False

    def handle(*_: object) -> None:
        nonlocal signalled
        if signalled:
            raise KeyboardInterrupt
        signalled = True  # not `request.reason`: the notice of a preemption comes first, and then its SIGTERM
        request.ask("stopped")

    before: list[Any] = [signal.signal(number, handle) for number in SIGNALS]
    try:
        yield request
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)
