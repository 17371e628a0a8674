"""Write down where the time of a run went: each stretch between two events of its journal in one category."""

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
"""Where time goes.

useful: steps beyond the largest image count reached before. redone: steps made before, and what came after the
last report of an attempt that was lost. data: waiting for batches. checkpoint: the loop's stalls. grid: sample
grids. other: the rest of the loop, such as recording metrics. start: from a launch to training. recovery: from an
incident to training again. end: from the last report to the end of the launch, such as final samples and judging.
"""

Status = Literal["running", "finished", "stopped", "preempted", "failed", "killed"]


class Ledger:
    """Goes through the events in order and writes each stretch of time down, once."""

    def __init__(self) -> None:
        self.seconds: dict[Category, float] = dict.fromkeys(get_args(Category), 0.0)
        self.by_cause: dict[Cause, float] = {}
        self.incidents: dict[Cause, int] = {}
        self.down = 0.0
        self.latest = -math.inf
        """Time of the newest event."""
        self.written = 0.0
        """Time up to which everything is written down."""
        self.phase: Literal["start", "recovery", "training"] | None = None
        """None: no launch is under way."""
        self.blamed: Cause = "driver"
        """The newest incident: what recovery is from, and why steps are repeated."""
        self.restart: Literal["start", "recovery"] = "start"
        """How the next launch begins."""
        self.best = 0
        self.attempt = 0
        self.last: TrainingStarted | StepReport | None = None
        """What the sums of the next progress event are compared with."""
        self.stall = 0.0
        """Stalls for checkpoints since the last report."""
        self.how: Status | None = None

    def take(self, event: Event) -> None:
        """Go on to the next event."""
        time = max(self.latest, event.time)
        if isinstance(event, Launched) or self.latest == -math.inf:
            self._launch(time)
        self.latest = time
        if self.phase is None:  # what an uploader reports late, say
            return
        if isinstance(event, AttemptStarted):
            if self.phase == "training":  # that the attempt before was lost is all that is known
                self._lost(time, "error")
        elif isinstance(event, TrainingStarted):
            self._lost(time, "error") if self.phase == "training" else self._write(time, self.phase)
            self.phase, self.attempt, self.last, self.stall = "training", event.attempt, event, 0.0
            self.best = max(self.best, event.images)
        elif isinstance(event, StepReport):
            if self.phase == "training" and event.attempt == self.attempt:
                self._progress(time, event)
        elif isinstance(event, Checkpointed):
            # The sums of a progress event hold the stalls before it: only later checkpoints are not in them.
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
        """End the account, and return the run's status."""
        if self.phase is None:
            return self.how or "killed"
        if now is None:
            self._kill()
            return "killed"
        if self.phase != "training":  # training is written down when it reports
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
        """Write down what came after the last report of an attempt."""
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
