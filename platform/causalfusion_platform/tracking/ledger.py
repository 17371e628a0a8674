"""Assign each stretch of time between two events of a run's journal to one category."""

from __future__ import annotations

import math
from typing import Literal, get_args

from .journal import (
    AttemptStarted,
    Cause,
    Checkpointed,
    Ended,
    Event,
    Incident,
    Launched,
    StepReport,
    TrainingStarted,
)

Category = Literal["useful", "redone", "data", "checkpoint", "grid", "other", "start", "recovery", "end"]
"""Categories of time.

- `useful`: steps beyond the largest image count reached before.
- `redone`: steps made before, and the time after the last report of an attempt that was lost.
- `data`: waiting for batches.
- `checkpoint`: waits of the loop for checkpoints.
- `grid`: sample grids.
- `other`: the rest of the loop, such as recording metrics.
- `start`: from a launch to training.
- `recovery`: from an incident to training again.
- `end`: from the last report to the end of the launch: final samples and their scores, or the end of a stopped run.
"""

Status = Literal["running", "finished", "stopped", "preempted", "failed", "killed"]


class Ledger:
    """Go through the events in order, and count each stretch of time once."""

    def __init__(self) -> None:
        self.seconds: dict[Category, float] = dict.fromkeys(get_args(Category), 0.0)
        self.by_cause: dict[Cause, float] = {}
        self.incidents: dict[Cause, int] = {}
        self.down = 0.0
        self.latest = -math.inf
        """Time of the newest event."""
        self.written = 0.0
        """Time up to which everything is counted."""
        self.phase: Literal["start", "recovery", "training"] | None = None
        """Phase of the launch under way. None: there is none."""
        self.blamed: Cause = "driver"
        """Cause of the newest incident, and so of the recovery and of repeated steps."""
        self.restart: Literal["start", "recovery"] = "start"
        """First phase of the next launch."""
        self.best = 0
        self.attempt = 0
        self.last: TrainingStarted | StepReport | None = None
        """Event whose sums the next progress event is compared with."""
        self.stall = 0.0
        """Waits for checkpoints since the last report, in seconds."""
        self.how: Status | None = None

    def take(self, event: Event) -> None:
        """Count the time up to the next event."""
        time = max(self.latest, event.time)
        if isinstance(event, Launched) or self.latest == -math.inf:
            self._launch(time)
        self.latest = time
        if self.phase is None:  # such as a late report of an uploader
            return
        if isinstance(event, AttemptStarted):
            if self.phase == "training":  # the attempt before was lost, for an unknown reason
                self._lost(time, "error")
        elif isinstance(event, TrainingStarted):
            self._lost(time, "error") if self.phase == "training" else self._write(time, self.phase)
            self.phase, self.attempt, self.last, self.stall = "training", event.attempt, event, 0.0
            self.best = max(self.best, event.images)
        elif isinstance(event, StepReport):
            if self.phase == "training" and event.attempt == self.attempt:
                self._progress(time, event)
        elif isinstance(event, Checkpointed):
            # The sums of a progress event contain the waits before it. Only later checkpoints are not in them.
            if self.phase == "training" and self.last and event.images >= self.last.images:
                self.stall += max(event.stall_seconds, 0)
        elif isinstance(event, Incident):
            known = event.cause == "driver" == self.blamed and self.phase == "recovery"  # from the launch itself
            if not known:
                self._count(event.cause)
            self._lost(time, event.cause)
        elif isinstance(event, Ended):
            self._tail(time, "end") if self.phase == "training" else self._write(time, self.phase)
            self.phase, self.how, self.restart = None, event.how, "start"
            if event.how == "preempted":
                self.blamed, self.restart = "preempted", "recovery"

    def close(self, now: float | None) -> Status:
        """Count the rest of the time, and return the run's status."""
        if self.phase is None:
            return self.how or "killed"
        if now is None:
            self._kill()
            return "killed"
        if self.phase != "training":  # training is counted when it reports
            self._write(max(now, self.latest), self.phase)
        return "running"

    def _launch(self, time: float) -> None:
        if self.phase is not None:
            self._kill()
        self.down += time - self.written if self.latest > -math.inf else 0.0
        self.written, self.how, self.phase = time, None, self.restart

    def _kill(self) -> None:
        self._count("driver")
        self._lost(self.latest, "driver")
        self.phase, self.restart = None, "recovery"

    def _lost(self, time: float, cause: Cause) -> None:
        if self.phase == "training":
            self.blamed = cause
            self._tail(time, "redone")
        elif self.phase is not None:
            self._write(time, self.phase)
        self.phase, self.blamed = "recovery", cause

    def _tail(self, time: float, category: Category) -> None:
        """Count the time after the last report of an attempt."""
        self._write(min(self.written + self.stall, time), "checkpoint")
        self._write(time, category)

    def _progress(self, time: float, event: StepReport) -> None:
        wall, before = time - self.written, self.last
        past = before if isinstance(before, StepReport) else None
        sums = [
            max(getattr(event, name) - (getattr(past, name) if past else 0.0), 0.0)
            for name in ("step_seconds", "data_seconds", "checkpoint_seconds", "grid_seconds")
        ]
        scale = min(1.0, wall / sum(sums)) if sum(sums) else 0.0
        steps, data, checkpoint, grid = (scale * part for part in sums)
        first = before.images if before else 0
        new = max(event.images - max(first, self.best), 0) / max(event.images - first, 1)
        parts: dict[Category, float] = {
            "useful": steps * new,
            "redone": steps * (1 - new),
            "data": data,
            "checkpoint": checkpoint,
            "grid": grid,
            "other": max(wall - steps - data - checkpoint - grid, 0.0),
        }
        for category, part in parts.items():
            self._add(part, category)
        self.written, self.last, self.stall = time, event, 0.0
        self.best = max(self.best, event.images)

    def _count(self, cause: Cause) -> None:
        self.incidents[cause] = self.incidents.get(cause, 0) + 1

    def _write(self, time: float, category: Category) -> None:
        self._add(time - self.written, category)
        self.written = time

    def _add(self, seconds: float, category: Category) -> None:
        self.seconds[category] += seconds
        if category in ("redone", "recovery") and seconds:
            self.by_cause[self.blamed] = self.by_cause.get(self.blamed, 0.0) + seconds
