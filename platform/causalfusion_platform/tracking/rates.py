"""Speed of a run: images, tokens, FLOPs and MFU, from the sums in its journal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .journal import AttemptStarted, Event, StepReport, TrainingStarted


@dataclass(frozen=True)
class Rates:
    """Averages over a time of training. Speeds count optimizer steps with the wait for their batches.

    Speeds leave out start-up, checkpoints and sample grids, which `Account.goodput` counts.
    """

    images: int
    """Images trained on, repeated ones included."""
    images_per_second: float
    """Over all workers."""
    tokens_per_second: float
    """Tokens of training sequences, over all workers."""
    tflops: float
    """TFLOP/s over all workers."""
    tflops_per_worker: float
    """TFLOP/s of one worker."""
    mfu: float | None
    """Model FLOPs utilisation: a worker's FLOP/s over its device's peak.

    None where the peak is not known, or where `beyond_peak` is true."""
    beyond_peak: bool
    """True if a worker was faster than the stated peak of its device. Such a peak is too low."""
    data_share: float
    """Share of the training loop's time spent waiting for batches."""
    checkpoint_share: float
    """Share of the training loop's time spent waiting for checkpoints."""
    gpu_bytes: int
    """Largest GPU memory of a worker."""
    cpu_bytes: int
    """Largest resident memory of a worker."""


@dataclass(frozen=True)
class Stretch:
    """Training of one attempt, from its `training` event to its newest progress."""

    workers: int
    peak_tflops: float | None
    fastest_tflops: float
    """TFLOP/s of a worker in its fastest report."""
    first: int
    """Images seen when it began."""
    newest: StepReport

    @property
    def seconds(self) -> float:
        """Time of its steps, waiting for batches included."""
        return max(self.newest.step_seconds, 0) + max(self.newest.data_seconds, 0)

    @property
    def beyond_peak(self) -> bool:
        """True if a worker was faster than its device's peak, on average or in one report."""
        average = self.newest.flops / 1e12 / self.workers / self.seconds if self.seconds else 0.0
        return bool(self.peak_tflops) and utilization(average, self.peak_tflops, self.fastest_tflops) is None


def stretches(events: Sequence[Event]) -> list[Stretch]:
    """Return the stretch of each attempt, in order. Attempts without progress are left out."""
    workers: dict[int, int] = {}
    begun: dict[int, TrainingStarted] = {}
    newest: dict[int, StepReport] = {}
    fastest: dict[int, float] = {}
    for event in events:
        if isinstance(event, AttemptStarted):
            workers[event.attempt] = event.workers
        elif isinstance(event, TrainingStarted):
            begun[event.attempt] = event
            newest.pop(event.attempt, None)
            fastest.pop(event.attempt, None)
        elif isinstance(event, StepReport) and event.attempt in begun:
            newest[event.attempt] = event
            now = event.interval.tflops_per_worker if event.interval else 0.0
            fastest[event.attempt] = max(now, fastest.get(event.attempt, 0.0))
    return [
        Stretch(
            max(workers.get(attempt, 1), 1),
            begun[attempt].peak_tflops,
            fastest[attempt],
            begun[attempt].images,
            progress,
        )
        for attempt, progress in newest.items()
    ]


def utilization(tflops: float, peak_tflops: float | None, fastest_tflops: float = 0.0) -> float | None:
    """Return the share of a device's peak.

    Args:
        tflops: TFLOP/s of the device.
        peak_tflops: its peak. None: not known.
        fastest_tflops: the most that the device has been seen to do.

    Returns:
        None where the peak is not known, or where the device was faster: a measured peak may be too low.
    """
    if not peak_tflops or max(tflops, fastest_tflops) > peak_tflops:
        return None
    return tflops / peak_tflops


def rates(parts: Iterable[Stretch]) -> Rates | None:
    """Return the averages over some attempts. None if their training time is 0."""
    parts = list(parts)
    training = sum(part.seconds for part in parts)
    if not training:
        return None
    images = sum(max(part.newest.images - part.first, 0) for part in parts)
    flops = sum(part.newest.flops for part in parts)
    data = sum(max(part.newest.data_seconds, 0) for part in parts)
    checkpoint = sum(max(part.newest.checkpoint_seconds, 0) for part in parts)
    loop = training + checkpoint + sum(max(part.newest.grid_seconds, 0) for part in parts)
    worker_seconds = sum(part.workers * part.seconds for part in parts)
    possible = sum(part.workers * part.seconds * (part.peak_tflops or 0) * 1e12 for part in parts)
    beyond_peak = any(part.beyond_peak for part in parts)
    known = all(part.peak_tflops for part in parts) and not beyond_peak
    return Rates(
        images=images,
        images_per_second=images / training,
        tokens_per_second=sum(part.newest.tokens for part in parts) / training,
        tflops=flops / training / 1e12,
        tflops_per_worker=flops / worker_seconds / 1e12,
        mfu=flops / possible if known and possible else None,
        beyond_peak=beyond_peak,
        data_share=data / loop,
        checkpoint_share=checkpoint / loop,
        gpu_bytes=max(part.newest.gpu_bytes for part in parts),
        cpu_bytes=max(part.newest.cpu_bytes for part in parts),
    )
