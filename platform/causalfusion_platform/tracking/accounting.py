"""Account for the time of a run: goodput, and losses by cause. A pure function of the run's journal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .journal import AttemptStarted, Cause, Checkpointed, Event, Launched, StepReport, TrainingStarted
from .ledger import Category, Ledger, Status
from .rates import Rates, rates, stretches


@dataclass(frozen=True)
class Account:
    """Status, time and speed of a run, over all its launches."""

    status: Status
    """`killed`: the newest launch has no end, and its driver is gone."""
    images: int
    """Images seen at the newest report, or at a checkpoint that the attempt saved after it."""
    step: int
    """Optimizer steps up to there."""
    launches: int
    attempts: int
    incidents: dict[Cause, int]
    """Number of incidents by cause. A launch that was killed counts as `driver`."""
    seconds: dict[Category, float]
    """Time of the launches by category. Every category is there."""
    by_cause: dict[Cause, float]
    """Seconds of `redone` and `recovery` together, by cause."""
    down_seconds: float
    """Time between launches."""
    training: TrainingStarted | None
    """The newest start of training: device and peak."""
    attempt: AttemptStarted | None
    """The newest attempt: workers and ZeRO stage."""
    newest: Rates | None
    """Speeds of the newest attempt that reported progress."""
    whole: Rates | None
    """Speeds over all attempts."""
    reported: float | None
    """UNIX time of the newest event."""

    @property
    def elapsed_seconds(self) -> float:
        """Time of all launches. While training runs it is counted up to the newest report."""
        return math.fsum(self.seconds.values())

    @property
    def goodput(self) -> float:
        """Time in useful steps over elapsed time. 0 before the first step."""
        elapsed = self.elapsed_seconds
        return self.seconds["useful"] / elapsed if elapsed else 0.0


def account(events: Sequence[Event], now: float | None = None) -> Account:
    """Account for a run.

    Args:
        events: its journal. Clocks of several machines may differ, so time is never counted backwards.
        now: the present UNIX time, if the run's driver is alive. None: it is not.
    """
    ledger = Ledger()
    for event in events:
        ledger.take(event)
    status = ledger.close(now)
    attempts = stretches(events)
    images, step = _reached(events)
    trainings = [event for event in events if isinstance(event, TrainingStarted)]
    starts = [event for event in events if isinstance(event, AttemptStarted)]
    return Account(
        status=status,
        images=images,
        step=step,
        launches=sum(isinstance(event, Launched) for event in events),
        attempts=len(starts),
        incidents=ledger.incidents,
        seconds=ledger.seconds,
        by_cause=ledger.by_cause,
        down_seconds=ledger.down,
        training=trainings[-1] if trainings else None,
        attempt=starts[-1] if starts else None,
        newest=rates(attempts[-1:]),
        whole=rates(attempts),
        reported=ledger.latest if events else None,
    )


def _reached(events: Sequence[Event]) -> tuple[int, int]:
    """Return images and steps of the newest report, or of a checkpoint that the attempt saved after it."""
    known = [event for event in events if isinstance(event, StepReport | Checkpointed)]
    reports = [event for event in known if isinstance(event, StepReport)]
    newest = max((event.attempt for event in known), default=0)
    images = max((event.images for event in known if event.attempt == newest), default=0)
    if not reports or reports[-1].images == images or reports[-1].images <= 0:
        return images, reports[-1].step if reports else 0
    return images, round(images * reports[-1].step / reports[-1].images)  # all steps have the same number of images
