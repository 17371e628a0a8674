"""Averages and sums of steps, against plain Python; and what is recorded, where, and not twice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.platform.tracking.recorded import waiting
from tests.platform.train.trained import BATCH, CPU, alone, tiny

from causalfusion.flops import forward_flops
from causalfusion_platform.tasks.class_to_image import cost_of
from causalfusion_platform.tracking.journal import Journal, StepReport
from causalfusion_platform.tracking.records import Metrics
from causalfusion_platform.train.device import Peak
from causalfusion_platform.train.loop import OptimizerStep, StepResult
from causalfusion_platform.train.metrics import MetricsHook, Recording, Spent
from causalfusion_platform.train.progress import Progress
from causalfusion_platform.train.system import System

TINY = tiny(Path("nowhere"))
SIZES = ((16,), (4, 12), (1, 2, 3, 10), (8, 8))


def result(number: int, *, skipped: bool = False) -> StepResult:
    """Step `number`: every quantity is another one."""
    sizes = SIZES[number % len(SIZES)]
    step = OptimizerStep(
        loss=torch.tensor(1.0 + number),
        values={"mse": torch.tensor(0.25 * number)},
        grad_norm=torch.tensor(math.inf if skipped else 2.0 + number),
        learning_rate=0.5 / (1 + number),
        numbers={"ar_steps": len(sizes)},
        cost=lambda: cost_of(TINY, list(sizes)),
        skipped=skipped,
    )
    return StepResult(step, images=BATCH, seconds=0.5 + number, data_seconds=0.25)


class Case:
    """A hook, and all that it recorded."""

    def __init__(self, root: Path, *, recorded_images: int = 0, peak: float | None = 2.0) -> None:
        alone()
        self.experiment = tiny(root)
        self.journal = Journal(root)
        self.shown: list[Progress] = []
        self.spent = Spent()
        system = System(root, CPU)
        recording = Recording(self.journal, self.shown.append, 3, recorded_images, system)
        self.hook = MetricsHook(BATCH, recording, self.spent, Peak(peak, "a test"))
        self.images = 0

    def report(self, results: Sequence[StepResult]) -> None:
        for one in results:
            self.hook.observe(one)
            self.images += one.images
        run(self.hook, self.images, self.experiment)

    def metrics(self) -> dict[int, dict[str, float]]:
        found = {}
        for record in waiting(self.journal.path.parent):
            assert isinstance(record, Metrics)
            assert record.step not in found
            found[record.step] = record.values
        return found

    def progress(self) -> list[StepReport]:
        events = self.journal.events()
        assert all(isinstance(event, StepReport) for event in events)
        return [event for event in events if isinstance(event, StepReport)]


def run(hook: MetricsHook, images: int, experiment: Any) -> None:
    state = SimpleNamespace(images_seen=images, step=images // BATCH)
    loop: Any = SimpleNamespace(experiment=experiment, state=state, device=CPU)
    hook.run(loop)


def flops_of(case: Case, results: Sequence[StepResult]) -> float:
    """The library's own count for the whole images of each step, forward and twice as much backward."""
    model = case.experiment.model
    splits = [SIZES[(int(one.step.loss) - 1) % len(SIZES)] for one in results]
    sums = [forward_flops(model, list(split), attention="visible", skip_unread=True) for split in splits]  # type: ignore[arg-type]
    return 3.0 * BATCH * sum(sums)


def test_averages_and_sums_of_two_reports(tmp_path: Path) -> None:
    case = Case(tmp_path)
    first, second = [result(number) for number in range(3)], [result(number) for number in range(3, 8)]
    case.report(first)
    case.spent.checkpoints, case.spent.grids = 7.0, 5.0
    case.report(second)
    values = case.metrics()
    assert list(values) == [3 * BATCH, 8 * BATCH]
    for results, found in zip((first, second), values.values(), strict=True):
        numbers = [int(one.step.loss) - 1 for one in results]
        count, seconds = len(numbers), sum(0.5 + number for number in numbers)
        flops = flops_of(case, results)
        expected = {
            "train/loss": sum(1.0 + number for number in numbers) / count,
            "train/mse": sum(0.25 * number for number in numbers) / count,
            "train/learning_rate": 0.5 / (1 + numbers[-1]),
            "train/grad_norm": 2.0 + numbers[-1],
            "train/ar_steps": sum(len(SIZES[number % 4]) for number in numbers) / count,
            "train/skipped_steps": 0,
            "throughput/images_per_second": BATCH * count / seconds,
            "throughput/tflops_per_worker": flops / seconds / 1e12,
            "throughput/mfu": flops / seconds / 2e12,
            "throughput/data_wait": 0.25 * count / seconds,
        }
        assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-6)
        assert 0.01 < found["memory/cpu_gib"] < 1000
        assert "memory/gpu_gib" not in found
        assert 0 < found["system/system_memory_usage_percentage"] < 100
        # Any other prefix would be a chart group of its own.
        assert {name.partition("/")[0] for name in found} == {"train", "throughput", "memory", "system"}
    one, both = case.progress()
    assert (one.attempt, one.images, one.step) == (3, 3 * BATCH, 3)
    assert (both.images, both.step, both.checkpoint_seconds, both.grid_seconds) == (8 * BATCH, 8, 7.0, 5.0)
    everything = [*first, *second]
    assert both.flops == pytest.approx(flops_of(case, everything), rel=1e-9)  # sums are of the whole attempt
    assert both.step_seconds == pytest.approx(sum(0.25 + number for number in range(8)))
    assert both.data_seconds == pytest.approx(8 * 0.25)
    assert both.loss == pytest.approx(sum(1.0 + number for number in range(3, 8)) / 5)
    assert both.tokens > one.tokens > 0
    assert both.cpu_bytes > 2**20
    assert [(shown.images, shown.total) for shown in case.shown] == [(24, 80), (64, 80)]
    assert [shown.loss for shown in case.shown] == [one.loss, both.loss]
    assert case.shown[1].mfu == pytest.approx(values[64]["throughput/mfu"])


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=5), min_size=1, max_size=5), st.integers(0, 4))
def test_the_loss_between_checkpoints(reports: list[list[bool]], taken: int) -> None:
    """The mean over all updates that were made, however many fall into each report."""
    alone()
    experiment = tiny(Path("nowhere"))  # nothing is written
    hook = MetricsHook(BATCH, None, Spent(), Peak(None, "not known"))
    number, losses = 0, []
    for index, report in enumerate(reports):
        for skipped in report:
            hook.observe(result(number, skipped=skipped))
            losses += [] if skipped else [1.0 + number]
            number += 1
        run(hook, BATCH * number, experiment)
        if index == taken:
            found = hook.take_loss()
            assert found == (pytest.approx(sum(losses) / len(losses)) if losses else None)
            losses = []
    assert hook.take_loss() == (pytest.approx(sum(losses) / len(losses)) if losses else None)
    assert hook.take_loss() is None


def test_skipped_updates_are_counted_and_in_no_average(tmp_path: Path) -> None:
    case = Case(tmp_path)
    case.report([result(0), result(1, skipped=True), result(2)])
    case.report([result(3, skipped=True), result(4, skipped=True)])
    case.report([result(5)])
    first, none, last = case.metrics().values()
    assert first["train/loss"] == pytest.approx((1 + 3) / 2)
    assert first["train/mse"] == pytest.approx((0 + 0.5) / 2)
    assert not {"train/loss", "train/mse"} & set(none)
    assert none["train/grad_norm"] == math.inf
    assert [one["train/skipped_steps"] for one in (first, none, last)] == [1, 3, 3]
    assert none["throughput/images_per_second"] == pytest.approx(2 * BATCH / (3.5 + 4.5))  # the work was done
    assert [event.skipped_steps for event in case.progress()] == [1, 3, 3]
    assert math.isnan(case.progress()[1].loss)  # there was none: 0 would look like the best of all
    assert math.isnan(case.shown[1].loss)
    assert case.progress()[2].flops == pytest.approx(flops_of(case, [result(number) for number in range(6)]))


def test_what_was_recorded_before_a_fault_is_not_recorded_again(tmp_path: Path) -> None:
    case = Case(tmp_path, recorded_images=2 * BATCH)
    for number in range(4):
        case.report([result(number)])
    assert list(case.metrics()) == [3 * BATCH, 4 * BATCH]
    # The journal and the terminal follow what is really done.
    assert [event.images for event in case.progress()] == [BATCH * number for number in range(1, 5)]
    assert len(case.shown) == 4


def test_an_unknown_peak_has_no_utilization(tmp_path: Path) -> None:
    case = Case(tmp_path, peak=None)
    case.report([result(1)])
    assert "throughput/mfu" not in case.metrics()[BATCH]
    assert case.shown[0].mfu is None


def test_a_peak_below_the_speed_seen_has_no_utilization(tmp_path: Path) -> None:
    """Others computed while it was measured. What a later, slower report would make of it is as wrong."""
    fast, slow = [result(1)], [result(5)]
    speeds = [flops_of(Case(tmp_path), one) / one[0].seconds / 1e12 for one in (fast, slow)]
    assert speeds[0] > speeds[1]
    case = Case(tmp_path, peak=sum(speeds) / 2)
    case.report(slow)
    case.report(fast)
    case.report(slow)
    assert ["throughput/mfu" in values for values in case.metrics().values()] == [True, False, False]
    assert [shown.mfu is None for shown in case.shown] == [False, True, True]


def test_a_report_without_steps_is_none(tmp_path: Path) -> None:
    case = Case(tmp_path)
    case.report([result(1)])
    case.report([])
    assert len(case.progress()) == 1


def test_other_ranks_record_nothing_but_average_too(tmp_path: Path) -> None:
    case = Case(tmp_path)
    case.hook.recording = None
    case.report([result(1), result(2)])
    assert (case.metrics(), case.progress(), case.shown) == ({}, [], [])
    assert case.hook.take_loss() == pytest.approx(2.5)
    assert case.spent.steps == pytest.approx(1.25 + 2.25)
