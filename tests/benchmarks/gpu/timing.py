"""Times on a device: of one piece of work, by events, and of many steps, by the wall clock."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


def wait(device: torch.device) -> None:
    """Wait until the device has done everything. A CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def milliseconds(work: Callable[[], object], device: torch.device, *, rounds: int = 10, warm: int = 3) -> float:
    """Return the median time of some work, after `warm` untimed rounds.

    On a GPU events around the work measure it, so launches that overlap with earlier work cost nothing.
    """
    if device.type != "cuda":
        rounds, warm = 1, 1
    for _ in range(warm):
        work()
    wait(device)
    return statistics.median(_once(work, device) for _ in range(rounds))


def _once(work: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        started = time.perf_counter()
        work()
        return (time.perf_counter() - started) * 1e3
    begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    begin.record()
    work()
    end.record()
    end.synchronize()
    elapsed: float = begin.elapsed_time(end)
    return elapsed


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the wall time of some work, with the gaps between its launches, up to the end of its last kernel."""
    wait(device)
    started = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - started
