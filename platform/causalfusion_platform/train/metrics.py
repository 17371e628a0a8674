"""Report the steps since the last report to the run's journal, MLflow and the terminal."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch

from ..tracking.journal import Interval, Journal, StepReport
from ..tracking.rates import utilization
from .blocks import Recompilations
from .device import Peak, memory_in_use
from .loop import OptimizerStep, StepResult, TrainLoop
from .progress import Progress, ProgressSink
from .system import System


@dataclass
class Spent:
    """Seconds since training began, by activity."""

    steps: float = 0.0
    """Optimizer steps, without the wait for their batches."""
    data: float = 0.0
    """Waiting for batches."""
    checkpoints: float = 0.0
    """The loop's stalls for checkpoints."""
    grids: float = 0.0
    """Sample grids."""


@dataclass(frozen=True)
class Recording:
    """Destinations of the first rank's records, and the images recorded before."""

    journal: Journal
    progress: ProgressSink
    attempt: int
    recorded_images: int
    """Images of the steps reported already. Trained again after a fault, they give MLflow no second point."""
    system: System
    """This machine's readings."""


class MetricsHook:
    """Average metrics over ranks and steps, and report them.

    Args:
        every_images: cadence.
        recording: on the first rank. None on the others.
        spent: the run's clock, which the other hooks write into too.
        peak: peak arithmetic of the device.
        recompilations: count of compilations of blocks after the first step. None: they are not compiled.
    """

    at_end = True

    def __init__(
        self,
        every_images: int,
        recording: Recording | None,
        spent: Spent,
        peak: Peak,
        recompilations: Recompilations | None = None,
    ) -> None:
        self.every_images = every_images
        self.recording, self.spent, self.peak = recording, spent, peak
        self.recompilations = recompilations
        self.results: list[StepResult] = []
        self.flops, self.tokens, self.skipped = 0.0, 0, 0
        self.fastest_tflops = 0.0
        """TFLOP/s of a worker in the fastest report so far."""
        self.started = time.perf_counter()
        self.loss_since_checkpoint: list[tuple[float, int]] = []
        """Mean loss and number of updates of each report."""

    def observe(self, result: StepResult) -> None:
        """Keep the step's result until the next report."""
        if self.recompilations is not None:
            self.recompilations.begin()  # after the first step, unless there was a warm-up
        self.results.append(result)
        self.spent.steps += result.seconds - result.data_seconds
        self.spent.data += result.data_seconds

    def run(self, loop: TrainLoop) -> None:
        """Record the steps since the last report, if there are any."""
        results, self.results = self.results, []
        if not results:  # on all ranks alike
            return
        made = [result.step for result in results if not result.step.skipped]
        loss, means = self._average(made)
        if made:
            self.loss_since_checkpoint.append((loss, len(made)))
        flops, tokens = _work(results)
        self.flops, self.tokens = self.flops + flops, self.tokens + tokens
        self.skipped += len(results) - len(made)
        gpu_bytes, cpu_bytes = _largest(*memory_in_use(loop.device), loop.device)
        if self.recording is None:
            return
        recording, state, spent = self.recording, loop.state, self.spent
        report = StepReport(
            attempt=recording.attempt,
            images=state.images_seen,
            step=state.step,
            step_seconds=spent.steps,
            data_seconds=spent.data,
            checkpoint_seconds=spent.checkpoints,
            grid_seconds=spent.grids,
            flops=self.flops,
            tokens=self.tokens,
            loss=loss,
            skipped_steps=self.skipped,
            recompilations=None if self.recompilations is None else self.recompilations.count(),
            gpu_bytes=gpu_bytes,
            cpu_bytes=cpu_bytes,
            repeated=state.images_seen <= recording.recorded_images,
            interval=self._interval(results, means if made else None, flops, tokens, recording.system),
        )
        recording.journal.add(report)  # others read this line
        recording.progress(Progress.of(report, loop.experiment.train.total_images))

    def _interval(
        self, results: list[StepResult], means: dict[str, float] | None, flops: float, tokens: int, system: System
    ) -> Interval:
        # Steps alone: checkpoints and grids do not count as training time.
        seconds = sum(result.seconds for result in results)
        worker_tflops = flops / seconds / torch.distributed.get_world_size() / 1e12
        self.fastest_tflops = max(self.fastest_tflops, worker_tflops)
        return Interval(
            means=means,
            numbers=_mean_numbers(results),
            learning_rate=results[-1].step.learning_rate,
            grad_norm=float(results[-1].step.grad_norm),
            images_per_second=sum(result.images for result in results) / seconds,
            tokens_per_second=tokens / seconds,
            tflops_per_worker=worker_tflops,
            data_wait=sum(result.data_seconds for result in results) / seconds,
            checkpoint_stall=self.spent.checkpoints / (time.perf_counter() - self.started),
            mfu=utilization(worker_tflops, self.peak.tflops, self.fastest_tflops),
            system=system.read(),
        )

    def take_loss(self) -> float | None:
        """Return the mean loss since the last call, by which checkpoints are compared. None without steps."""
        losses, self.loss_since_checkpoint = self.loss_since_checkpoint, []
        updates = sum(count for _, count in losses)
        return sum(loss * count for loss, count in losses) / updates if updates else None

    def _average(self, made: list[OptimizerStep]) -> tuple[float, dict[str, float]]:
        """Return the loss and the further values, averaged over ranks and steps."""
        if not made:  # on all ranks alike
            return math.nan, {}
        names = list(made[0].values)
        series = [[step.loss for step in made], *([step.values[name] for step in made] for name in names)]
        sums = torch.stack([torch.stack(one).mean() for one in series])
        torch.distributed.all_reduce(sums)
        loss, *means = (sums / torch.distributed.get_world_size()).tolist()  # waits for the device
        return loss, dict(zip(names, means, strict=True))


def _work(results: list[StepResult]) -> tuple[float, int]:
    """Return FLOPs and tokens of steps, over all workers."""
    flops, tokens = 0.0, 0
    for result in results:
        cost = result.step.cost()
        flops += result.images * cost.flops
        tokens += result.images * cost.tokens
    return flops, tokens


def _mean_numbers(results: list[StepResult]) -> dict[str, float]:
    names = results[0].step.numbers
    return {name: sum(result.step.numbers[name] for result in results) / len(results) for name in names}


def _largest(gpu_bytes: int, cpu_bytes: int, device: torch.device) -> tuple[int, int]:
    numbers = torch.tensor([gpu_bytes, cpu_bytes], device=device)
    torch.distributed.all_reduce(numbers, torch.distributed.ReduceOp.MAX)
    gpu, cpu = numbers.tolist()
    return int(gpu), int(cpu)
