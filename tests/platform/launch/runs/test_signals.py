"""Signals become requests to stop: real ones, sent to this process."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from causalfusion_platform.launch.runs.signals import SIGNALS, StopRequest, stop_on_signals


@pytest.fixture(autouse=True)
def handlers() -> Iterator[dict[int, Any]]:
    """Handlers of this process that count, so that no signal ends the tests; return the counts."""
    counts: dict[int, Any] = dict.fromkeys(SIGNALS, 0)

    def count(number: int, _: object) -> None:
        counts[number] += 1

    before = {number: signal.signal(number, count) for number in SIGNALS}
    yield counts
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("first", SIGNALS)
@pytest.mark.parametrize("second", SIGNALS)
def test_the_first_asks_and_the_second_interrupts(first: int, second: int, handlers: dict[int, Any]) -> None:
    heard: list[str] = []
    with pytest.raises(KeyboardInterrupt), stop_on_signals() as stop:
        assert stop.reason is None
        stop.on_request = heard.append
        send(first)
        assert stop.reason == "stopped"
        assert heard == ["stopped"]
        send(second)
        raise AssertionError
    assert heard == ["stopped"]
    assert set(handlers.values()) == {0}


def test_a_preemption_does_not_count_as_a_signal() -> None:
    """A node that is taken back is drained first; then its processes get a SIGTERM. The checkpoint is under way."""
    with stop_on_signals() as stop:
        stop.ask("preempted")
        try:
            send(signal.SIGTERM)
        except KeyboardInterrupt:  # would end the tests, not this one alone
            pytest.fail("the first signal interrupts")
        assert stop.reason == "stopped"
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGTERM)


def test_a_launch_that_went_on_after_a_preemption_still_hears_signals() -> None:
    with stop_on_signals() as stop:
        stop.ask("preempted")
        stop.reason = None  # as the supervisor does when it goes on elsewhere
        send(signal.SIGINT)
        assert stop.reason == "stopped"


def leave_well() -> None:
    """End the block as a finished run does."""


def leave_badly() -> None:
    """End it with an error."""
    raise ValueError


@pytest.mark.parametrize("leave", [leave_well, leave_badly])
def test_handlers_come_back(leave: Callable[[], None], handlers: dict[int, Any]) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    try:
        with stop_on_signals() as stop:
            assert [signal.getsignal(number) for number in SIGNALS] != before
            leave()
    except ValueError:
        pass
    assert [signal.getsignal(number) for number in SIGNALS] == before
    for number in SIGNALS:
        send(number)
    assert handlers == dict.fromkeys(SIGNALS, 1)
    assert stop.reason is None


def test_another_thread_leaves_signals_alone(handlers: dict[int, Any]) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    seen: list[Any] = []

    def trial() -> None:
        with stop_on_signals() as stop:
            seen.append([signal.getsignal(number) for number in SIGNALS])
            stop.ask("stopped")
            seen.append(stop.reason)

    thread = threading.Thread(target=trial)
    thread.start()
    thread.join(30)
    assert seen == [before, "stopped"]
    send(signal.SIGTERM)
    assert handlers[signal.SIGTERM] == 1


def test_a_request_is_heard_by_whoever_listens_now() -> None:
    stop, heard = StopRequest(), list[str]()
    stop.ask("preempted")
    stop.on_request = heard.append
    stop.ask("stopped")
    assert (stop.reason, heard) == ("stopped", ["stopped"])
