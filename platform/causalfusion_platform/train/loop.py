"""The training loop: next batch, loss, backward, step. Everything periodic is a hook."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ..config.schema import Experiment
from ..data.prefetch import read_ahead
from .ema import Averages
from .engine import grad_norm, optimizer_step
from .objective import ReadyStep, StepCost, TrainingObjective
from .optimizer import set_learning_rate
from .rates import learning_rate_at


@dataclass
class TrainState:
    """Position of the run. With the seed it determines every later draw and row."""

    step: int = 0
    """Optimizer steps done."""
    images_seen: int = 0
    """Images trained on, and so the position in the stream of rows."""
    order: int = 0
    """Times that the order of the data was changed, by going back to a checkpoint after divergence."""


@dataclass(frozen=True)
class OptimizerStep:
    """Results of one optimizer step. Tensors stay on the device, since reading them would make it wait."""

    loss: Tensor
    """Weighted loss of this rank's rows."""
    values: Mapping[str, Tensor]
    """Further means over this rank's rows, by name."""
    grad_norm: Tensor | float
    """Gradient norm before clipping, over all ranks."""
    learning_rate: float
    numbers: Mapping[str, float]
    """Numbers of the step, the same on all ranks, such as `ar_steps`."""
    cost: Callable[[], StepCost]
    """Returns the cost of one row of this step."""
    skipped: bool = False
    """True if the update was left out, by the guard or because fp16 gradients overflowed. Where the device decides,
    hooks get the answer. Before, it is False."""


@dataclass(frozen=True)
class StepResult:
    """One turn of the loop: an optimizer step, and the time it took with its batch."""

    step: OptimizerStep
    images: int
    """Images of this step over all ranks."""
    seconds: float
    """Wall time, waiting for data included."""
    data_seconds: float
    """Time spent waiting for the batch."""


class Hook(Protocol):
    """Periodic work on every rank."""

    every_images: int
    """Cadence, in images seen."""
    at_end: bool
    """If true, it also runs when training ends (once, if both fall together)."""

    def observe(self, _: StepResult, /) -> None:
        """Receive the result of every step. Must not wait for the device. The default does nothing."""
        return

    def run(self, loop: TrainLoop) -> None:
        """Do the periodic work."""


class RunsAtOnce:
    """Base of hooks whose `run` does not need the newest step's result. Others make a late loop wait for it."""


@dataclass
class TrainLoop:
    """Train from `state` to the experiment's end.

    With `late` the device decides on each update, and the host learns of it when the next step is under way.
    Results reach averages and hooks then, before the weights change again. So they are the same.
    """

    experiment: Experiment
    engine: Any
    objective: TrainingObjective
    averages: Averages
    state: TrainState
    device: torch.device
    data_rows: int | None = None
    """Rows of the data set, for a warmup in epochs."""
    late: Callable[[], bool] | None = None
    """Returns whether the newest update was skipped, when the device has decided. None: it is known at once."""
    _hooks: Sequence[Hook] = ()
    _open: StepResult | None = None
    """The newest step, while averages and hooks have not got it."""

    def ready(self, batch: Any, number: int | None = None) -> ReadyStep:
        """Return the step on this rank's batch, with its draws.

        Args:
            batch: the rows.
            number: of the step, counted from 0. None: the present one.
        """
        step = self.objective.step(batch, self.state.step if number is None else number)
        return ReadyStep(step, self.experiment.train.rows_at_once, self.device)

    def _all_ready(self, batches: Iterator[Any]) -> Generator[ReadyStep]:
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # of this thread. Pinned memory takes a context on its GPU.
        for number, batch in enumerate(batches, self.state.step):
            yield self.ready(batch, number)

    def train_step(self, ready: ReadyStep) -> OptimizerStep:
        """Make one optimizer step on this rank's rows."""
        experiment, step = self.experiment, ready.step
        after = self.state.images_seen + experiment.train.global_batch_size
        rate = learning_rate_at(experiment, after, rows=self.data_rows)
        set_learning_rate(self.engine, rate)
        optimizer = self.engine.basic_optimizer
        made = optimizer.steps_made
        loss, values = optimizer_step(self.engine, ready, self.settle)
        return OptimizerStep(
            loss=loss,
            values=values,
            grad_norm=grad_norm(self.engine),
            learning_rate=rate,
            numbers=step.numbers,
            cost=step.cost,
            skipped=optimizer.steps_made == made,
        )

    def run(self, batches: Iterator[Any], hooks: Sequence[Hook]) -> TrainState:
        """Train until the experiment's images are seen, running the hooks at their cadences."""
        self._hooks = hooks
        steps = self._all_ready(batches)
        if self.device.type != "cpu":
            steps = read_ahead(steps, 1)  # a thread makes each while the device computes the one before
        try:
            while self.state.step < self.experiment.train.steps:
                self._turn(steps)
            self.settle()
        finally:
            steps.close()
        return self.state

    def settle(self) -> None:
        """Give averages and hooks the newest step, if they have not got it. A late loop waits for the device."""
        if self._open is None:
            return
        result, self._open = self._open, None
        if self.late is not None:
            result = replace(result, step=replace(result.step, skipped=self.late()))
            self._average(result.step)
        for hook in self._hooks:
            hook.observe(result)

    def _turn(self, steps: Iterator[ReadyStep]) -> None:
        train = self.experiment.train
        before, started = self.state.images_seen, time.perf_counter()
        ready = next(steps)
        waited = time.perf_counter() - started
        step = self.train_step(ready)
        self.state.step += 1
        self.state.images_seen += train.global_batch_size
        if self.late is None:
            self._average(step)
        self._open = StepResult(
            step=step,
            images=train.global_batch_size,
            seconds=time.perf_counter() - started,
            data_seconds=waited,
        )
        if self.late is None:
            self.settle()
        done = self.state.step >= train.steps
        seen = self.state.images_seen
        due = [hook for hook in self._hooks if (done and hook.at_end) or crossed(before, seen, hook.every_images)]
        if not all(isinstance(hook, RunsAtOnce) for hook in due):
            self.settle()
        for hook in due:
            hook.run(self)

    def _average(self, step: OptimizerStep) -> None:
        if not step.skipped:
            self.averages.update(self.state.step)


def crossed(before: int, after: int, every: int) -> bool:
    """Return whether a multiple of `every` lies in (before, after]."""
    return after // every > before // every
