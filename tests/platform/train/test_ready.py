"""Steps that are made ahead hold the draws of `draw`: after a resume, for any workers and micro-batches."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from causalfusion import build_model, draw
from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.data.prefetch import read_ahead
from causalfusion_platform.data.read import Batch
from causalfusion_platform.tasks.class_to_image import ClassToImageObjective
from causalfusion_platform.train.loop import TrainLoop, TrainState
from causalfusion_platform.train.objective import ReadyStep

CPU = torch.device("cpu")
ROWS, STEPS = 8, 3


def experiment(world: int, micro: int, objective: dict[str, Any]) -> Experiment:
    train = {
        "images": 10 * ROWS,
        "global_batch_size": ROWS,
        "num_workers": world,
        "micro_batch_size": micro,
    }
    return Experiment.model_validate(
        {"name": "x", "seed": 5, "model": {"preset": "tiny"}, "objective": objective, "train": train}
    )


def batches(of: Experiment, rank: int, first: int) -> Iterator[Batch]:
    model, rows = of.model, of.train.worker_batch_size
    for step in itertools.count(first):
        start = step * ROWS + rank * rows
        labels = torch.arange(start, start + rows) % model.num_classes
        shape, seeded = (rows, model.in_channels, model.input_size, model.input_size), torch.Generator()
        latents = torch.randn(shape, generator=seeded.manual_seed(start))
        yield Batch(range(start, start + rows), labels, latents, labels)


def thread_of(of: Experiment, first: int, rows: Iterator[Batch]) -> Generator[ReadyStep]:
    """Steps on these rows from `first` on, as a loop that starts there makes them on a GPU."""
    nothing: Any = SimpleNamespace()
    objective = ClassToImageObjective(build_model(of.model), of)
    return read_ahead(
        TrainLoop(of, nothing, objective, nothing, TrainState(first, first * ROWS), CPU)._all_ready(rows), 1
    )


def made_ready(of: Experiment, rank: int, first: int, count: int) -> list[ReadyStep]:
    steps = thread_of(of, first, batches(of, rank, first))
    found = list(itertools.islice(steps, count))
    steps.close()
    return found


@pytest.mark.parametrize("objective", [{}, {"time_sampling": "per_step", "time_copies": 2}])
@pytest.mark.parametrize(("world", "micro"), [(1, 8), (1, 2), (2, 4), (4, 1)])
def test_draws_are_those_of_the_samples(world: int, micro: int, objective: dict[str, Any]) -> None:
    of = experiment(world, micro, objective)
    ranks = [made_ready(of, rank, 0, STEPS) for rank in range(world)]
    for number in range(STEPS):
        samples = range(number * ROWS, (number + 1) * ROWS)
        whole = draw(of.model, of.objective, of.diffusion, seed=of.seed, step=number, samples=samples)
        parts = [part for steps in ranks for part in steps[number].inputs()[0]]
        assert len(parts) == ROWS // micro
        assert all(part.ready.sizes == whole.sizes for part in parts)
        for name in ("orders", "noise", "dropped"):
            assert torch.equal(torch.cat([getattr(part.ready, name) for part in parts]), getattr(whole, name))
        times = torch.cat([part.ready.times for part in parts])
        wanted = whole.times
        if wanted.shape[2] > 1:
            wanted = torch.repeat_interleave(wanted, torch.tensor(whole.sizes), dim=2)
        assert torch.equal(times, wanted)
        labels = torch.cat([part.labels for part in parts])
        assert labels.tolist() == [sample % of.model.num_classes for sample in samples]


def test_a_resumed_run_makes_the_same_steps() -> None:
    of = experiment(1, 4, {})
    whole, resumed = made_ready(of, 0, 0, 5), made_ready(of, 0, 2, 3)
    for one, other in zip(whole[2:], resumed, strict=True):
        for part, again in zip(one.inputs()[0], other.inputs()[0], strict=True):
            assert torch.equal(part.latents, again.latents)
            assert torch.equal(part.ready.noise, again.ready.noise)
            assert part.ready.sizes == again.ready.sizes


def test_the_thread_raises_in_the_loop() -> None:
    of = experiment(1, 8, {})

    def broken() -> Iterator[Batch]:
        yield from itertools.islice(batches(of, 0, 0), 1)
        raise ValueError("a shard is damaged")

    steps = thread_of(of, 0, broken())
    next(steps)
    with pytest.raises(ValueError, match="a shard is damaged"):
        next(steps)
