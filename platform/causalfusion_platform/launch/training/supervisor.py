"""Retry a training from the last good checkpoint, within a budget of failures, or give up with a diagnosis."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ...assemble import Job, TrainingTimes
from ...config.errors import UserError
from ...storage.fence import Fence, NoFence, Superseded
from ...tracking.journal import AttemptStarted, Incident, Journal
from ..cluster.failures import Lost, cause_of, user_error_in
from ..runs.exit_status import GaveUp, StoppedRun
from ..runs.signals import StopRequest

logger = logging.getLogger(__name__)


@dataclass
class Supervisor:
    """Supervise one launch of a run.

    Args:
        job: the training. Each attempt gets a copy with its number.
        journal: attempts and incidents are written to it.
        attempt: trains once, and returns its end or raises.
        fit_workers: called before each attempt, returns the job for the workers that fit.
        rolled_back: called when the run goes back to a checkpoint with another order of the data: (new order).
        stop: requests to stop.
        fence: of the launch.
    """

    job: Job
    journal: Journal
    attempt: Callable[[Job], dict[str, Any]]
    fit_workers: Callable[[Job], Job]
    rolled_back: Callable[[int], None]
    stop: StopRequest
    launch: int
    first_attempt: int
    fence: Fence = field(default_factory=NoFence)
    incidents: list[Incident] = field(default_factory=list)
    saved: list[int] = field(default_factory=list)
    """Images of the newest checkpoint at each incident but slow starts."""

    def run(self) -> TrainingTimes:
        """Train to the end.

        Raises:
            UserError: an argument is wrong.
            StoppedRun: it was stopped, with a checkpoint.
            GaveUp: the budget is used up, training does not get on, or it diverged for good.
            Superseded: another launch has taken the run over. It may have caused any fault of this one.
        """
        job, number = self.job, self.first_attempt
        while True:
            job = self.fit_workers(job).model_copy(update={"attempt": number})
            self._begin(job)
            try:
                ended = self.attempt(job)
            except (UserError, StoppedRun):
                self._check_fence()
                raise
            except Exception as error:
                self._check_fence()
                fault = user_error_in(error.error if isinstance(error, Lost) and error.error else error)
                if fault is not None:
                    raise fault from error
                self._record_failure(job, error)
            else:
                how = ended["how"]
                if how == "superseded":
                    self.fence.check()
                    raise Superseded(f"another launch has taken run {job.experiment.name!r} over")
                if how == "done":
                    return TrainingTimes(**ended["times"])
                if how == "diverged":
                    job = self._roll_back(job, ended)
                elif how == "storage":
                    raise GaveUp(
                        f"run {job.experiment.name!r} stopped: {ended['detail']}\n"
                        f"  free space below {job.url or job.experiment.run_dir}, then give the same command"
                    )
                elif how == "preempted" and self._goes_on(job, ended):
                    pass
                else:
                    raise StoppedRun(
                        f"run {job.experiment.name!r} was {how} at {ended['images']} images, with a checkpoint\n"
                        f"  the same command continues it"
                    )
            number += 1

    def _check_fence(self) -> None:
        with suppress(OSError):  # not known: the fault itself is reported
            self.fence.check()

    def _begin(self, job: Job) -> None:
        train = job.experiment.train
        self._check_fence()
        if self.stop.reason is not None:
            raise StoppedRun(f"run {job.experiment.name!r} was stopped\n  the same command continues it")
        self.journal.add(
            AttemptStarted(
                launch=self.launch,
                attempt=job.attempt,
                workers=train.num_workers,
                zero_stage=train.stage,
                images=job.storage.newest_images(),
            )
        )

    def _record_failure(self, job: Job, error: Exception) -> None:
        """Record an incident.

        Raises:
            GaveUp: the budget allows no other attempt.
        """
        cause, detail = cause_of(error)
        images = error.images if isinstance(error, Lost) else 0
        self._note(Incident(attempt=job.attempt, cause=cause, detail=detail, images=images), job)

    def _note(self, incident: Incident, job: Job) -> None:
        limits = job.experiment.supervision
        self.journal.add(incident)
        self.incidents.append(incident)
        newest = job.storage.newest_images()
        if incident.cause != "start":  # a full cluster says nothing about the training
            self.saved.append(newest)
        logger.warning(f"{incident.cause}: {incident.detail.splitlines()[0]}")
        faults = sum(one.cause != "preempted" for one in self.incidents)
        if faults > limits.max_failures:
            raise GaveUp(self._diagnosis(job, f"{faults} faults in one launch"))
        recent = self.saved[-limits.max_failures_without_progress :]
        if len(recent) == limits.max_failures_without_progress and len(set(recent)) == 1:
            raise GaveUp(self._diagnosis(job, f"{len(recent)} faults in a row without a new checkpoint"))
        logger.info(f"going on from the last good checkpoint ({newest} images)")

    def _roll_back(self, job: Job, ended: dict[str, Any]) -> Job:
        order = job.order + 1
        limits = job.experiment.supervision
        incident = Incident(attempt=job.attempt, cause="diverged", detail=ended["detail"], images=ended["images"])
        if order > limits.max_rollbacks:
            self.journal.add(incident)
            self.incidents.append(incident)
            raise GaveUp(
                self._diagnosis(job, f"training diverged {order} times, each time with another order of the data")
                + "\n  lower optim.base_lr, lengthen the warmup, or look at the data near these positions; "
                "then give the same command with --allow-config-change KEY, or start anew with name=…"
            )
        self._note(incident, job)
        self.rolled_back(order)
        return job.model_copy(update={"order": order})

    def _goes_on(self, job: Job, ended: dict[str, Any]) -> bool:
        """Say whether the launch itself survives a preemption, so that it can go on elsewhere."""
        if self.stop.reason != "preempted":
            return False
        self.stop.reason = None
        self._note(
            Incident(
                attempt=job.attempt, cause="preempted", detail="a node was taken back", images=ended["images"]
            ),
            job,
        )
        return True

    def _diagnosis(self, job: Job, why: str) -> str:
        lines = [f"run {job.experiment.name!r} gives up: {why}"]
        for incident in self.incidents[-8:]:
            first, *_ = incident.detail.splitlines()
            lines.append(f"  attempt {incident.attempt}, {incident.images} images: {incident.cause}: {first}")
        newest = job.storage.newest_images()
        lines.append(f"  the last good checkpoint has {newest} images; the same command tries again from there")
        return "\n".join(lines)
