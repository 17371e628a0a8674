"""Where a run's time went: by hand for the stories that runs go through, and by brute force for any journal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from causalfusion_platform.tracking.accounting import account
from causalfusion_platform.tracking.journal import (
    AttemptStarted,
    Checkpointed,
    Ended,
    Event,
    Incident,
    Interval,
    Launched,
    SetAside,
    StepReport,
    TrainingStarted,
)


def launched(time: float, launch: int = 1) -> Event:
    return Launched(time=time, launch=launch, host="h", pid=1)


def attempt(time: float, number: int = 1, images: int = 0, workers: int = 2) -> Event:
    return AttemptStarted(time=time, launch=1, attempt=number, workers=workers, zero_stage=1, images=images)


def training(time: float, number: int = 1, images: int = 0, peak: float | None = 2.0) -> Event:
    return TrainingStarted(
        time=time, attempt=number, images=images, device="cpu", peak_tflops=peak, peak_source="measured"
    )


def progress(time: float, images: int, step: float, number: int = 1, **more: Any) -> Event:
    sums = {"data_seconds": 0.0, "checkpoint_seconds": 0.0, "grid_seconds": 0.0, "flops": 0.0, "tokens": 0}
    rest = {"loss": 1.0, "skipped_steps": 0, "gpu_bytes": 0, "cpu_bytes": 7}
    values = {**sums, **rest, **more}
    return StepReport(time=time, attempt=number, images=images, step=images // 10, step_seconds=step, **values)


def saved(time: float, images: int, stall: float, number: int = 1) -> Event:
    return Checkpointed(time=time, attempt=number, images=images, bytes=1, stall_seconds=stall, upload_seconds=0.0)


def incident(time: float, cause: Any = "worker", number: int = 1) -> Event:
    return Incident(time=time, attempt=number, cause=cause, detail="lost", images=0)


def ended(time: float, how: Any = "finished") -> Event:
    return Ended(time=time, launch=1, how=how)


def spent(events: Sequence[Event], now: float | None = None) -> dict[str, float]:
    return {category: seconds for category, seconds in account(events, now).seconds.items() if seconds}


SMOOTH: list[Event] = [
    launched(100),
    attempt(103),
    training(110),
    progress(130, 100, step=14, data_seconds=2, grid_seconds=1, checkpoint_seconds=0.5),
    progress(150, 200, step=30, data_seconds=3, grid_seconds=1, checkpoint_seconds=2.5),
    saved(151, 200, stall=0.5),
    ended(158),
]


def test_a_smooth_run() -> None:
    found = account(SMOOTH)
    assert found.seconds == pytest.approx(
        {
            "useful": 30,
            "redone": 0,
            "data": 3,
            "checkpoint": 3,  # 2.5 in the sums, 0.5 of the last one, which came after the last report
            "grid": 1,
            "other": 3.5,
            "start": 10,
            "recovery": 0,
            "end": 7.5,
        }
    )
    assert (found.status, found.images, found.step) == ("finished", 200, 20)
    assert (found.launches, found.attempts, found.incidents) == (1, 1, {})
    assert found.elapsed_seconds == pytest.approx(58)
    assert found.goodput == pytest.approx(30 / 58)
    assert (found.by_cause, found.down_seconds) == ({}, 0)


def test_a_checkpoint_whose_stall_the_sums_hold_already_counts_once() -> None:
    late: list[Event] = [*SMOOTH[:5], saved(151, 100, stall=2), ended(158)]
    assert spent(late)["checkpoint"] == pytest.approx(2.5)


def test_a_lost_worker() -> None:
    events: list[Event] = [
        launched(0),
        attempt(1),
        training(10),
        progress(30, 200, step=20),
        incident(37),  # 7 s of work that nobody reported
        attempt(40, 2, images=150),
        training(45, 2, images=150),
        progress(65, 350, step=20, number=2),  # 50 of the 200 images had been seen before
        ended(67),
    ]
    assert spent(events) == pytest.approx(
        {"start": 10, "useful": 20 + 15, "redone": 7 + 5, "recovery": 8, "end": 2}
    )
    found = account(events)
    assert found.by_cause == pytest.approx({"worker": 20})
    assert found.incidents == {"worker": 1}
    assert found.attempts == 2


def test_each_cause_pays_for_its_own_losses() -> None:
    events: list[Event] = [
        launched(0),
        attempt(0),
        training(4),
        progress(14, 100, step=10),
        incident(15, "hang"),
        training(18, 2, images=0),
        progress(23, 50, step=5, number=2),  # all of it once more, for the hang
        incident(25, "memory", 2),
        incident(28, "worker", 3),  # the new workers never came to train
        training(32, 4, images=100),
        progress(42, 200, step=10, number=4),
        ended(42),
    ]
    found = account(events)
    assert found.by_cause == pytest.approx({"hang": 1 + 3 + 5, "memory": 2 + 3, "worker": 4})
    assert found.incidents == {"hang": 1, "memory": 1, "worker": 1}
    assert found.seconds["recovery"] == pytest.approx(10)
    assert found.seconds["redone"] == pytest.approx(8)


@pytest.mark.parametrize("noted", [False, True], ids=["silently", "and the next launch notes it"])
def test_a_killed_launch(noted: bool) -> None:
    events: list[Event] = [
        launched(0),
        training(5),
        progress(15, 100, step=10),
        saved(18, 100, stall=1),  # the last sign of life
        launched(60, 2),
        *([incident(61, "driver")] if noted else []),
        attempt(62, 2, images=100),
        training(70, 2, images=100),
        progress(80, 200, step=10, number=2),
        ended(81),
    ]
    found = account(events)
    assert found.incidents == {"driver": 1}
    assert found.down_seconds == pytest.approx(42)
    assert found.elapsed_seconds == pytest.approx(18 + 21)
    assert found.by_cause == pytest.approx({"driver": 2 + 10})
    assert spent(events) == pytest.approx(
        {"start": 5, "useful": 20, "checkpoint": 1, "redone": 2, "recovery": 10, "end": 1}
    )


def test_going_on_after_a_stop_is_a_start_and_after_a_preemption_a_recovery() -> None:
    def story(how: str) -> dict[str, float]:
        first: list[Event] = [launched(0), training(5), progress(15, 100, step=10), ended(17, how)]
        return spent([*first, launched(50, 2), training(58, 2, images=100)], now=None)

    assert story("stopped") == pytest.approx({"start": 13, "useful": 10, "end": 2})
    assert story("failed") == pytest.approx({"start": 13, "useful": 10, "end": 2})
    assert story("preempted") == pytest.approx({"start": 5, "useful": 10, "end": 2, "recovery": 8})


def test_steps_repeated_after_a_clean_end_are_the_newest_incidents() -> None:
    first: list[Event] = [launched(0), training(5), progress(15, 100, step=10), ended(15, "stopped")]
    again: list[Event] = [
        launched(20, 2),
        SetAside(time=21, checkpoint="images-100", reason="damaged"),
        training(25, 2),
    ]
    found = account([*first, *again, progress(35, 50, step=10, number=2), ended(35)])
    assert found.seconds["redone"] == pytest.approx(10)
    assert found.by_cause == pytest.approx({"driver": 10})


def test_a_running_launch_counts_up_to_now_but_training_up_to_its_report() -> None:
    assert spent([launched(0), attempt(2)], now=9) == pytest.approx({"start": 9})
    events: list[Event] = [launched(0), training(4), progress(14, 100, step=10), saved(20, 100, stall=1)]
    assert spent(events, now=500) == pytest.approx({"start": 4, "useful": 10})
    assert account(events, now=500).status == "running"
    assert account(events).status == "killed"
    assert spent([*events, incident(30)], now=36) == pytest.approx(
        {"start": 4, "useful": 10, "checkpoint": 1, "redone": 15, "recovery": 6}
    )


def test_an_attempt_that_vanished_without_an_incident() -> None:
    events: list[Event] = [
        launched(0),
        training(5),
        progress(15, 10, step=10),
        attempt(20, 2),
        training(26, 2, images=10),
    ]
    assert spent(events, now=30) == pytest.approx({"start": 5, "useful": 10, "redone": 5, "recovery": 6})
    assert account(events, now=30).by_cause == pytest.approx({"error": 11})


def test_reports_of_a_former_attempt_and_after_the_end_change_nothing() -> None:
    events: list[Event] = [
        launched(0),
        training(5, 2),
        progress(7, 90, step=50, number=1),
        progress(15, 10, step=9, number=2),
    ]
    whole = [*events, ended(16), progress(18, 900, step=60, number=2), saved(19, 900, stall=5)]
    assert spent(whole) == pytest.approx({"start": 5, "useful": 9, "other": 1, "end": 1})


def test_sums_that_exceed_the_clock_are_cut_to_it() -> None:
    events: list[Event] = [launched(0), training(10), progress(20, 100, step=30, data_seconds=10), ended(20)]
    assert spent(events) == pytest.approx({"start": 10, "useful": 7.5, "data": 2.5})


def test_a_clock_that_goes_back_stands_still() -> None:
    events: list[Event] = [launched(100), training(90), progress(110, 100, step=10), ended(105)]
    assert spent(events) == pytest.approx({"useful": 10})


def test_nothing_has_happened() -> None:
    found = account([])
    assert (found.status, found.elapsed_seconds, found.goodput, found.newest) == ("killed", 0, 0, None)
    assert account([], now=5.0).elapsed_seconds == 0


def test_rates() -> None:
    # First attempt: 2 workers at 2 TFLOP/s; second: 1 worker at 8 TFLOP/s.
    events: list[Event] = [
        launched(0),
        attempt(0, workers=2),
        training(0, peak=2.0),
        progress(20, 100, step=5, data_seconds=1, flops=4e12, tokens=900),
        progress(30, 300, step=10, data_seconds=2, flops=12e12, tokens=2400, grid_seconds=6, checkpoint_seconds=2),
        incident(31),
        attempt(32, 2, workers=1),
        training(33, 2, images=200, peak=8.0),
        progress(60, 400, step=4, data_seconds=0, flops=8e12, tokens=1600, number=2, gpu_bytes=9, cpu_bytes=5),
    ]
    found = account(events, now=70)
    assert found.newest is not None and found.whole is not None
    newest, whole = found.newest, found.whole
    assert (newest.images, newest.images_per_second, newest.tokens_per_second) == (200, 50, 400)
    assert (newest.tflops, newest.tflops_per_worker, newest.mfu) == pytest.approx((2, 2, 0.25))
    assert (newest.data_share, newest.checkpoint_share) == (0, 0)
    assert (newest.gpu_bytes, newest.cpu_bytes) == (9, 5)
    assert (whole.images, whole.images_per_second, whole.tokens_per_second) == (500, 500 / 16, 250)
    assert whole.tflops == pytest.approx(20 / 16)
    assert whole.tflops_per_worker == pytest.approx(20 / (2 * 12 + 4))
    assert whole.mfu == pytest.approx(20 / (2 * 12 * 2 + 4 * 8))
    assert whole.data_share == pytest.approx(2 / 24)
    assert whole.checkpoint_share == pytest.approx(2 / 24)
    assert (whole.gpu_bytes, whole.cpu_bytes) == (9, 7)
    assert found.training is not None and found.training.peak_tflops == 8
    assert found.attempt is not None and found.attempt.workers == 1


def test_no_mfu_without_a_peak() -> None:
    found = account([launched(0), training(0, peak=None), progress(9, 10, step=9, flops=1e12)], now=9)
    assert found.newest is not None
    assert found.newest.mfu is None
    assert found.newest.tflops == pytest.approx(1 / 9)


def test_no_mfu_where_a_worker_was_faster_than_its_peak() -> None:
    """On average, or in one report. An attempt with a wrong peak leaves the others their MFU, but not the whole."""
    wrong: list[Event] = [launched(0), attempt(0, workers=2), training(0), progress(9, 10, step=9, flops=37e12)]
    right: list[Event] = [attempt(20, 2, workers=1), training(20, 2), progress(30, 20, 4, 2, flops=4e12)]
    for events, mfu, whole in ((wrong, None, None), ([*wrong, incident(10), *right], 0.5, None)):
        found = account(events, now=40)
        assert found.newest is not None and found.whole is not None
        assert (found.newest.mfu, found.whole.mfu) == (mfu, whole)
        assert (found.newest.beyond_peak, found.whole.beyond_peak) == (mfu is None, True)
    fast = Interval(
        means=None,
        numbers={},
        learning_rate=0.1,
        grad_norm=1.0,
        images_per_second=1.0,
        tokens_per_second=1.0,
        tflops_per_worker=2.1,
        data_wait=0.0,
        checkpoint_stall=0.0,
        mfu=None,
        system={},
    )
    once = progress(30, 20, 4, 2, flops=4e12, interval=fast)
    newest = account([launched(0), *right[:2], once], now=40).newest
    assert newest is not None and newest.beyond_peak and newest.mfu is None


@pytest.mark.parametrize(
    ("events", "images", "step"),
    [
        ([progress(20, 100, step=9)], 100, 10),
        ([progress(20, 100, step=9), saved(21, 130, 0.5)], 130, 13),  # lost before the next report
        ([progress(20, 100, step=9), saved(21, 80, 0.5)], 100, 10),  # reported late
        ([saved(15, 80, 0.5), progress(20, 100, step=9), attempt(30, 2), training(31, 2, 80)], 100, 10),
        ([progress(20, 100, step=9), attempt(30, 2), training(31, 2, 80), saved(35, 90, 0.5, 2)], 90, 9),
        ([saved(21, 80, 0.5)], 80, 0),
        ([], 0, 0),
    ],
)
def test_a_checkpoint_after_the_last_report_counts(events: list[Event], images: int, step: int) -> None:
    """Ten images a step."""
    found = account([launched(0), attempt(0), training(10), *events])
    assert (found.images, found.step) == (images, step)


times = st.floats(0, 1e6)
seconds = st.floats(-10, 1e5)
numbers = st.integers(1, 3)
counts = st.integers(-5, 300)
any_event = st.one_of(
    st.builds(launched, times),
    st.builds(attempt, times, numbers, counts),
    st.builds(training, times, numbers, counts),
    st.builds(
        progress,
        times,
        counts,
        seconds,
        numbers,
        data_seconds=seconds,
        checkpoint_seconds=seconds,
        grid_seconds=seconds,
    ),
    st.builds(saved, times, counts, seconds, numbers),
    st.builds(incident, times, st.sampled_from(["worker", "driver", "hang"]), numbers),
    st.builds(ended, times, st.sampled_from(["finished", "stopped", "preempted", "failed"])),
)


def wall_clock(events: list[Event], now: float | None) -> tuple[float, float]:
    """(seconds of all launches, seconds between them), from the times of the events alone."""
    launches: list[list[Event]] = []
    clock, times = -math.inf, []
    for event in events:
        clock = max(clock, event.time)
        times.append(clock)
        if isinstance(event, Launched) or not launches:
            launches.append([])
        launches[-1].append(event)
    elapsed, down, at, left = 0.0, 0.0, 0, None
    for launch in launches:
        kinds = [event.kind for event in launch]
        stop = kinds.index("ended") if "ended" in kinds else len(kinds) - 1
        until = times[at + stop]
        if launch is launches[-1] and now is not None and "ended" not in kinds:
            trained = None
            for index, event in enumerate(launch):
                goes_on = isinstance(event, StepReport) and trained and trained[0] == event.attempt
                if isinstance(event, TrainingStarted) or goes_on:
                    trained = (event.attempt, index)  # type: ignore[union-attr]
                elif isinstance(event, AttemptStarted | Incident):
                    trained = None
            until = times[at + trained[1]] if trained else max(now, until)
        elapsed += until - times[at]
        down += times[at] - left if left is not None else 0.0
        left = until
        at += len(launch)
    return elapsed, down


@settings(max_examples=400, deadline=None)
@given(st.lists(any_event, max_size=25), st.booleans(), st.none() | times)
def test_any_journal_is_accounted_for_to_the_second(events: list[Event], ordered: bool, now: float | None) -> None:
    if ordered:
        events = sorted(events, key=lambda event: event.time)
    found = account(events, now)
    elapsed, down = wall_clock(events, now)
    assert all(part >= 0 for part in found.seconds.values())
    assert found.elapsed_seconds == math.fsum(found.seconds.values())
    assert found.elapsed_seconds == pytest.approx(elapsed, abs=1e-3)
    assert found.down_seconds == pytest.approx(down, abs=1e-3)
    assert all(part >= 0 for part in found.by_cause.values())
    lost = found.seconds["redone"] + found.seconds["recovery"]
    assert sum(found.by_cause.values()) == pytest.approx(lost, abs=1e-3)
    assert 0 <= found.goodput <= 1
