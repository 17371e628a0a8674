"""A step of training never waits for the GPU: host synchronizations are counted on a GPU that is not there."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.platform.tasks.finetune_process import batch as rows_of
from tests.platform.tasks.finetune_process import experiment_of
from tests.platform.train.fake_gpu import CUDA, FakeReading, PlainEngine, Reads, Waits, fake_gpu

from causalfusion.attention.flex import FlexMask
from causalfusion.attention.plan import AttentionPlan
from causalfusion.factorization.sequence import lay_out
from causalfusion_platform.config.schema import Experiment, SupervisionConfig
from causalfusion_platform.tasks import open_task
from causalfusion_platform.tasks.finetune import Captioning, Classification
from causalfusion_platform.train.ema import Averages
from causalfusion_platform.train.ema_profiles import profiles_of
from causalfusion_platform.train.engine import grad_norm
from causalfusion_platform.train.guard import Guard
from causalfusion_platform.train.loop import TrainLoop, TrainState
from causalfusion_platform.train.optimizer import build_optimizer

ROWS = 8
TEXT = {
    "task": "text_image",
    "model": {"preset": "tiny", "class_tokens": 0, "text": {"vocabulary": 300, "max_tokens": 9}},
    "objective": {"text": {"share": 0.5}},
}
KINDS: dict[str, dict[str, Any]] = {
    "one time": {"model": {"preset": "tiny"}},
    "a time for each step": {"model": {"preset": "tiny"}, "objective": {"time_sampling": "per_step"}},
    "four copies": {"model": {"preset": "tiny"}, "objective": {"time_copies": 4, "sequence_multiple": 16}},
    "time token": {"model": {"preset": "tiny", "time_conditioning": "token"}},
    "DiT": {"model": {"preset": "digits-dit"}, "objective": {"num_ar_steps": 1}},
    "text": TEXT,
}


def experiment(**changes: Any) -> Experiment:
    train = {"images": 10 * ROWS, "global_batch_size": ROWS, "micro_batch_size": ROWS // 2, "zero_stage": 0}
    return Experiment.model_validate({"name": "x", "train": train} | changes)


def third_step(count: Waits | Reads, of: Experiment, device: torch.device) -> None:
    """Count in the third step of training. The first makes tables and moments, the second settles it."""
    task = open_task(of)
    batch = rows_of(task, 0) if isinstance(task, Classification | Captioning) else task.example_batch(ROWS)
    with torch.device(device):
        model = task.build_model()
    optimizer = build_optimizer(model, of)
    engine = PlainEngine(model, optimizer, 2, device)
    averages = Averages(model, profiles_of(of.optim))
    loop = TrainLoop(of, engine, task.objective(model), averages, TrainState(), device)
    guard = Guard(of.supervision, lambda: grad_norm(engine))
    optimizer.left_out, loop.late = guard.left_out, guard.settle
    steps = iter([loop.ready(batch, number) for number in range(3)])
    for _ in range(3):
        count.clear()
        loop._turn(steps)  # the averages get the step before in it
    assert list(guard.norms) == [1.0, 1.0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_makes_one_copy_and_never_waits(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_gpu(monkeypatch) as waits:
        third_step(waits, experiment(**KINDS[kind]), CUDA)
    assert waits.found == Counter()
    assert waits.copies == 1


@pytest.mark.parametrize("kind", ["classify", "caption"])
def test_a_step_of_a_fine_tune_never_waits(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # It draws again until all numbers lie inside, which those without values never do.
    monkeypatch.setattr("torch.nn.init.trunc_normal_", lambda tensor, **_: tensor)
    with fake_gpu(monkeypatch) as waits:
        third_step(waits, experiment_of(kind, micro=ROWS // 2), CUDA)
    assert waits.found == Counter()
    assert waits.copies == 1


@pytest.mark.parametrize("kind", ["four copies", "text"])
def test_a_step_with_its_backward_pass_reads_no_value(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, since there is no backward pass on a GPU that is not there."""
    monkeypatch.setattr("causalfusion_platform.train.guard.Reading", FakeReading)
    with Reads() as reads:
        third_step(reads, experiment(**KINDS[kind]), torch.device("cpu"))
    of_the_host = [line for line in reads.found if "partial(cost_of" in line]  # the mean length of captions
    assert list(reads.found) == of_the_host


def test_block_masks_are_made_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = AttentionPlan.of(lay_out([40, 60, 44], class_tokens=4, copies=2, multiple=64))
    with fake_gpu(monkeypatch) as waits:
        there = replace(plan, places=torch.zeros(plan.places.shape, dtype=torch.int32, device=CUDA))
        assert isinstance(there.mask(CUDA, torch.bfloat16, asked=288), FlexMask)
    assert waits.found == Counter()


def test_a_guard_that_does_not_run_late_waits_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The count of a step sees the reading of one number."""
    with fake_gpu(monkeypatch) as waits:
        guard = Guard(SupervisionConfig(), lambda: torch.ones((), device=CUDA))
        guard.allow()
    assert waits.found.total() == 1


def test_waits_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_gpu(monkeypatch) as waits:
        here, there = torch.arange(4), torch.arange(4, device=CUDA)
        for wait in (
            lambda: float(there.sum()),
            lambda: bool((there > 2).all()),
            lambda: here.to(CUDA),
            lambda: here.to(CUDA, non_blocking=True),  # not from pinned memory
            lambda: there.copy_(here),
            lambda: there.cpu(),
            lambda: torch.tensor(3, device=CUDA),
            lambda: there[here],
        ):
            before = sum(waits.found.values())
            wait()
            assert sum(waits.found.values()) == before + 1
        before = sum(waits.found.values())
        assert float(here.sum()) == 6.0
        assert torch.equal(here[here > 2], torch.tensor([3]))
        _ = there[there] + 3.0, there.masked_fill(there > 2, 5), torch.zeros(3, device=CUDA)
        assert sum(waits.found.values()) == before
