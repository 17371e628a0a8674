"""A step of training never waits for the GPU: host synchronizations are counted on a GPU that is not there."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from tests.platform.train.fake_gpu import CUDA, PlainEngine, Waits, fake_gpu

from causalfusion_platform.config.schema import Experiment, SupervisionConfig
from causalfusion_platform.tasks import open_task
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


def one_step(waits: Waits, of: Experiment) -> Counter[str]:
    """Waits of the third step of training. The first makes tables and moments, the second settles it."""
    task = open_task(of)
    batch = task.example_batch(ROWS)
    with torch.device(CUDA):
        model = task.build_model()
    optimizer = build_optimizer(model, of)
    engine = PlainEngine(model, optimizer, parts=2)
    averages = Averages(model, profiles_of(of.optim))
    loop = TrainLoop(of, engine, task.objective(model), averages, TrainState(), CUDA)
    guard = Guard(of.supervision, lambda: grad_norm(engine))
    optimizer.left_out, loop.late = guard.left_out, guard.settle
    steps = iter([loop.ready(batch, number) for number in range(3)])
    for _ in range(3):
        waits.clear()
        loop._turn(steps)  # the averages get the step before in it
    assert list(guard.norms) == [1.0, 1.0]
    return waits.found


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_makes_one_copy_and_never_waits(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_gpu(monkeypatch) as waits:
        found = one_step(waits, experiment(**KINDS[kind]))
    assert found == Counter()
    assert waits.copies == 1


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
