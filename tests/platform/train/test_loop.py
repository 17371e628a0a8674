"""The training loop's bookkeeping: how long it runs, and when hooks run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.data.read import Batch
from causalfusion_platform.train.loop import OptimizerStep, StepResult, TrainLoop, TrainState, crossed
from causalfusion_platform.train.objective import ReadyStep, StepCost

NUMBERS = st.integers(0, 300)


class Counter:
    """An average of weights that only notes when it is updated."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def update(self, step: int) -> None:
        self.steps.append(step)


FREE = StepCost(0.0, 0)


class Step:
    """A step without inputs that knows its batch and its number."""

    rows, totals = 0, None

    def __init__(self, batch: Batch, number: int) -> None:
        self.batch, self.number = batch, number


class Objective:
    """An objective that draws nothing."""

    def step(self, batch: Batch, number: int) -> Any:
        return Step(batch, number)


class Loop(TrainLoop):
    """A loop whose steps train nothing."""

    def train_step(self, ready: ReadyStep) -> OptimizerStep:
        step: Any = ready.step
        assert step.number == self.state.step
        loss = torch.tensor(float(step.batch.samples.start))
        return OptimizerStep(
            loss=loss, values={}, grad_norm=0.25, learning_rate=0.5, numbers={"ar_steps": 3}, cost=lambda: FREE
        )


class Notes:
    """A hook that notes when it runs and what it sees."""

    def __init__(self, every_images: int, at_end: bool) -> None:
        self.every_images, self.at_end = every_images, at_end
        self.ran: list[int] = []
        self.seen: list[StepResult] = []

    def observe(self, result: StepResult) -> None:
        self.seen.append(result)

    def run(self, loop: TrainLoop) -> None:
        assert len(self.seen) >= 1
        self.ran.append(loop.state.images_seen)


def make_loop(images: int, batch: int, steps_done: int = 0) -> Loop:
    experiment = Experiment.model_validate(
        {"name": "x", "model": {"preset": "tiny"}, "train": {"images": images, "global_batch_size": batch}}
    )
    state = TrainState(steps_done, steps_done * batch)
    nothing: Any = None
    average: Any = Counter()
    return Loop(experiment, nothing, Objective(), average, state, torch.device("cpu"))


class Stumbling(Loop):
    """One whose updates are left out at some steps."""

    left_out: frozenset[int] = frozenset()

    def train_step(self, ready: ReadyStep) -> OptimizerStep:
        return replace(super().train_step(ready), skipped=self.state.step in self.left_out)


def batches(start: int, size: int, count: int) -> Iterator[Batch]:
    empty = torch.zeros(0)
    for index in range(count):
        yield Batch(range(start + index * size, start + (index + 1) * size), empty, empty, empty)


@given(NUMBERS, NUMBERS, st.integers(1, 60))
def test_crossed_is_a_multiple_in_between(before: int, length: int, every: int) -> None:
    between = range(before + 1, before + length + 1)
    assert crossed(before, before + length, every) == any(number % every == 0 for number in between)


@given(
    st.integers(1, 120),
    st.integers(1, 20),
    st.integers(1, 50),
    st.booleans(),
    st.integers(0, 5),
)
def test_hooks_run_at_their_cadence(images: int, batch: int, every: int, at_end: bool, done: int) -> None:
    """Whole batches until all images are seen; the hook whenever a multiple is passed, and once at the end."""
    total = next(n for n in range(0, 200, batch) if n >= images)
    start = min(done * batch, total)
    loop, hook = make_loop(images, batch, start // batch), Notes(every, at_end)
    loop.run(batches(start, batch, 200), [hook])
    expected = {
        images_seen
        for images_seen in range(start + batch, total + 1, batch)
        if any(number % every == 0 for number in range(images_seen - batch + 1, images_seen + 1))
        or (at_end and images_seen == total)
    }
    assert hook.ran == sorted(expected)
    assert loop.state == TrainState(total // batch, total)
    assert len(hook.seen) == (total - start) // batch


def test_a_hook_runs_once_when_its_cadence_falls_on_the_end() -> None:
    loop, both, end, never = make_loop(100, 10), Notes(50, True), Notes(1000, True), Notes(1000, False)
    loop.run(batches(0, 10, 10), [both, end, never])
    assert (both.ran, end.ran, never.ran) == ([50, 100], [100], [])


def test_a_finished_run_does_nothing() -> None:
    loop, hook = make_loop(100, 10, 10), Notes(1, True)
    assert loop.run(iter(()), [hook]) == TrainState(10, 100)
    assert (hook.ran, hook.seen) == ([], [])


def test_hooks_see_every_step_in_order(make_experiment: Callable[..., Experiment]) -> None:
    loop, hook = make_loop(100, 30), Notes(1, False)
    loop.run(batches(0, 30, 4), [hook])
    assert [float(result.step.loss) for result in hook.seen] == [0, 30, 60, 90]
    average: Any = loop.averages
    assert average.steps == [1, 2, 3, 4]
    for result in hook.seen:
        step = result.step
        assert (step.learning_rate, step.numbers["ar_steps"], step.grad_norm) == (0.5, 3, 0.25)
        assert result.images == 30
        assert 0 <= result.data_seconds <= result.seconds


@given(st.frozensets(st.integers(0, 9)))
def test_skipped_steps_are_steps_but_enter_no_average(left_out: frozenset[int]) -> None:
    """An average over weights that did not move would count the old ones twice."""
    whole, hook = make_loop(100, 10), Notes(1, False)
    loop = Stumbling(whole.experiment, None, whole.objective, whole.averages, whole.state, whole.device)
    loop.left_out = left_out
    assert loop.run(batches(0, 10, 10), [hook]) == TrainState(10, 100)
    average: Any = loop.averages
    assert average.steps == [step + 1 for step in range(10) if step not in left_out]
    assert [result.step.skipped for result in hook.seen] == [step in left_out for step in range(10)]
    assert hook.ran == [10 * (step + 1) for step in range(10)]


def test_the_order_of_the_data_stays_with_the_state() -> None:
    loop = make_loop(100, 10)
    loop.state.order = 2
    assert loop.run(batches(0, 10, 10), []) == TrainState(10, 100, 2)


def test_hooks_run_in_their_order() -> None:
    order: list[str] = []

    class Named(Notes):
        def __init__(self, name: str) -> None:
            super().__init__(10, False)
            self.name = name

        def run(self, loop: TrainLoop) -> None:
            order.append(self.name)

    make_loop(20, 10).run(batches(0, 10, 2), [Named("first"), Named("second")])
    assert order == ["first", "second"] * 2


def test_time_spent_waiting_for_data_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 3.0, 4.0, 10.0, 10.5, 12.0])  # before, after the batch, after the step
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    hook = Notes(1000, False)
    make_loop(20, 10).run(batches(0, 10, 2), [hook])
    assert [(result.data_seconds, result.seconds) for result in hook.seen] == [(3.0, 4.0), (0.5, 2.0)]
