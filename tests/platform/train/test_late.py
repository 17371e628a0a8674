"""A loop that learns of each verdict one step late: against one that waits for it, on recorded gradients."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.train.ema import Averages
from causalfusion_platform.train.ema_profiles import profiles_of
from causalfusion_platform.train.engine import grad_norm
from causalfusion_platform.train.guard import Diverged, Guard
from causalfusion_platform.train.loop import RunsAtOnce, StepResult, TrainLoop, TrainState
from causalfusion_platform.train.objective import PartLoss, StepCost
from causalfusion_platform.train.optimizer import GuardedAdamW

CPU = torch.device("cpu")
ROWS = 4
NAN, INF = math.nan, math.inf


class Line(nn.Module):
    """Its gradient is the input."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 6))

    def forward(self, x: Tensor) -> Tensor:
        return (self.weight * x).sum()


@dataclass(frozen=True)
class Step:
    """A step with one gradient, in two micro-batches."""

    gradient: Tensor
    numbers: ClassVar[dict[str, float]] = {"ar_steps": 1.0}
    rows, totals = ROWS, None

    def part(self, rows: slice) -> Tensor:
        return self.gradient

    def loss(self, engine: Any, part: Tensor, totals: None) -> PartLoss:
        loss = engine.module(part)
        return PartLoss(loss, {})

    @property
    def cost(self) -> Any:
        return lambda: StepCost(0.0, 0)


class Engine:
    """The parts of DeepSpeed's engine that the loop uses, at ZeRO 0 on a CPU."""

    def __init__(self, module: nn.Module, optimizer: Any) -> None:
        self.module, self.optimizer, self.basic_optimizer, self.done = module, optimizer, optimizer, 0

    def backward(self, loss: Tensor) -> None:
        (loss / 2).backward()  # type: ignore[no-untyped-call]

    def step(self) -> None:
        self.done += 1
        if self.done % 2 == 0:
            self.optimizer.step()
            self.optimizer.zero_grad()


class Watch:
    """A hook that keeps what it gets, and the average at its cadence."""

    at_end = True

    def __init__(self, every_images: int) -> None:
        self.every_images = every_images
        self.seen: list[tuple[float, bool]] = []
        self.averages: list[Tensor] = []
        self.known: list[int] = []

    def observe(self, result: StepResult) -> None:
        self.seen.append((float(result.step.grad_norm), result.step.skipped))

    def run(self, loop: TrainLoop) -> None:
        self.known.append(len(self.seen))
        self.averages.append(loop.averages.full_state()["weight"].clone())


class EachStep(Watch, RunsAtOnce):
    """One that waits for nothing."""

    def __init__(self) -> None:
        super().__init__(1)

    def run(self, loop: TrainLoop) -> None:
        self.known.append(len(self.seen))


@dataclass
class Run:
    """A training on gradients of given norms."""

    norms: Sequence[float]
    late: bool
    cadence: int = 7
    allowed: int = 99

    def __post_init__(self) -> None:
        steps = len(self.norms)
        self.experiment = Experiment.model_validate(
            {
                "name": "x",
                "model": {"preset": "tiny"},
                "optim": {"ema_power": [0.1], "warmup_images": ROWS},
                "train": {"images": steps * ROWS, "global_batch_size": ROWS, "micro_batch_size": ROWS // 2},
                "supervision": {"spike_factor": 4.0, "max_skipped_steps": self.allowed},
            }
        )
        model = Line()
        self.optimizer = GuardedAdamW(model.parameters(), clip_norm=1.0, lr=0.1, fused=True)
        engine = Engine(model, self.optimizer)
        objective: Any = SimpleNamespace(step=lambda batch, number: Step(batch))
        averages = Averages(model, profiles_of(self.experiment.optim))
        self.loop = TrainLoop(self.experiment, engine, objective, averages, TrainState(), CPU)
        self.told: list[tuple[int, str]] = []
        self.guard = Guard(
            self.experiment.supervision,
            lambda: grad_norm(engine),
            lambda images, reason: self.told.append((images, reason)),
        )
        if self.late:
            self.optimizer.left_out, self.loop.late = self.guard.left_out, self.guard.settle
        else:
            self.optimizer.allow = self.guard.allow
        self.watch, self.each = Watch(self.cadence * ROWS), EachStep()

    def gradients(self) -> Iterator[Tensor]:
        for number, norm in enumerate(self.norms):
            direction = torch.randn(6, generator=torch.Generator().manual_seed(number))
            yield direction / direction.norm() * norm

    def train(self) -> Run:
        self.loop.run(self.gradients(), [self.guard, self.watch, self.each])
        return self

    @property
    def weights(self) -> Tensor:
        weights: Tensor = self.loop.engine.module.weight.detach()
        return weights


def recorded(seed: int, steps: int) -> list[float]:
    """Norms of a training: most are alike, some are spikes or no numbers."""
    chance = random.Random(seed)
    odd = [NAN, INF, 5.0, 6.0, 3.9, 4.1, 1e30, 0.0]
    return [chance.choice(odd) if chance.random() < 0.1 else chance.uniform(0.5, 1.5) for _ in range(steps)]


@pytest.mark.parametrize("seed", range(4))
def test_a_late_loop_trains_the_same(seed: int) -> None:
    norms = recorded(seed, 170)
    now, late = Run(norms, late=False).train(), Run(norms, late=True).train()
    assert sum(skipped for _, skipped in now.watch.seen) > 5
    assert torch.equal(now.weights, late.weights)
    assert list(now.guard.norms) == list(late.guard.norms)
    assert now.told == late.told
    assert [skipped for _, skipped in now.watch.seen] == [skipped for _, skipped in late.watch.seen]
    assert len(now.watch.averages) == len(late.watch.averages) == 25
    for one, other in zip(now.watch.averages, late.watch.averages, strict=True):
        assert torch.equal(one, other)
    for key in ("exp_avg", "exp_avg_sq", "step"):
        one, other = (next(iter(run.optimizer.state.values()))[key] for run in (now, late))
        assert torch.equal(one, other)


def test_a_late_loop_settles_at_cadences_alone() -> None:
    run = Run([1.0] * 20, late=True).train()
    assert run.watch.known == [7, 14, 20]
    assert run.each.known == [n if n in (7, 14, 20) else n - 1 for n in range(1, 21)]
    now = Run([1.0] * 20, late=False).train()
    assert now.each.known == list(range(1, 21))


@pytest.mark.parametrize(("bad", "late_by"), [(10, 1), (13, 0)])
def test_divergence_ends_a_late_loop_at_most_one_step_later(bad: int, late_by: int) -> None:
    """Step 14 is one of the cadence, so that nothing is saved of a run that has diverged."""
    norms = [NAN if step in (2, bad) else 1.0 for step in range(20)]
    ends = []
    for late in (False, True):
        run = Run(norms, late=late, allowed=1)
        with pytest.raises(Diverged, match=f"2 of the last {bad + 1} updates"):
            run.train()
        ends.append(run.loop.state.step)
        assert run.told == [(2 * ROWS, "the gradient norm is nan"), (bad * ROWS, "the gradient norm is nan")]
        assert len(run.watch.averages) == bad // 7
    assert ends == [bad + 1, bad + 1 + late_by]


def test_the_limit_is_exact_on_the_device() -> None:
    """A norm at the limit is allowed, and the next number in fp32 above it is not, as on the host."""
    usual = [1 / 3] * 60
    limit = torch.tensor(4.0 * (1 / 3), dtype=torch.float64)
    around = [limit.float()]
    around += [torch.nextafter(limit.float(), torch.tensor(way)) for way in (0.0, 9.0)]
    run = Run([1.0], late=False)
    for norm in (*around, torch.tensor(NAN), torch.tensor(INF), torch.tensor(-INF), torch.tensor(0.0)):
        verdicts = []
        for late in (False, True):
            guard = Guard(run.experiment.supervision, itertools.repeat(norm).__next__, norms=usual)
            if late:
                left_out = guard.left_out()
                verdicts.append(not bool(left_out))
                assert guard.settle() is bool(left_out)
            else:
                verdicts.append(guard.allow())
        assert verdicts[0] is verdicts[1]
        assert verdicts[0] is (math.isfinite(norm) and float(norm) <= float(limit))
