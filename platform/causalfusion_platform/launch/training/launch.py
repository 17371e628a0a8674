"""One launch of a run: from its opened folder through supervised training to its summary."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ...assemble import Job, TrainingTimes
from ...config.commands import command
from ...config.schema import Experiment
from ...config.secrets import known, redact
from ...data.validate import CheckedShards
from ...report.tables import markdown_table
from ...storage.fence import Superseded
from ...tasks import open_task
from ...tasks.final import read_final
from ...tracking.accounting import account
from ...tracking.journal import Ended, Launched, last_attempt, recorded_images
from ...tracking.mlflow import answers
from ...tracking.pages import NOTE
from ...tracking.tracker import AS_BARS
from ...train.progress import ProgressSink
from ..cluster.growth import asking_for, training_demand
from ..cluster.resources import cluster_resources
from ..runs.exit_status import StoppedRun
from ..runs.folder import RunFolder
from ..runs.signals import StopRequest
from .elastic import wait_for_workers
from .stage import with_stage
from .supervisor import Supervisor

logger = logging.getLogger(__name__)

_RUN_SECONDS = 15.0
"""Seconds that a worker in this process waits for MLflow to make the run, if it answers."""
_DRAIN_SECONDS = 60.0
_DRAIN_SECONDS_AWAY = 5.0
"""Seconds to wait for MLflow to take the last records, if it answers and if not. The rest stays on disk."""


@dataclass
class Stages:
    """Wall time of each stage of a run, in order."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Add the time spent inside to a stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - started)

    def add(self, stage: str, seconds: float) -> None:
        """Add time to a stage."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds


@dataclass
class Launch:
    """One launch of a run, from its opened folder to its summary."""

    experiment: Experiment
    folder: RunFolder
    shards: CheckedShards
    stop: StopRequest
    show: ProgressSink
    local: bool
    other_data: bool

    def __post_init__(self) -> None:
        self.journal, self.outbox = self.folder.journal, self.folder.outbox
        self.delivery = self.folder.delivery()

    def run(self, stages: Stages, started: float) -> dict[str, Any]:
        """Train, evaluate, write the summary and return it. MLflow and the journal record any end.

        Raises:
            UserError, NotFinished: see `run_training`.
            Superseded: another launch has taken the run over.
        """
        launch, token = self.folder.started.launches, self.folder.launch_id
        if not self.local:
            with stages.time("workers up and down"):
                # Ray Train is imported before a thread imports MLflow: both import some of the same packages.
                from . import attempt  # noqa: F401
        with stages.time("MLflow"):
            self._begin_delivery()
        self.journal.add(Launched(launch=launch, host=socket.gethostname(), pid=os.getpid()))
        try:
            job = Job(
                experiment=self.experiment,
                mlflow_run_id=self.folder.started.mlflow_run_id,
                bad_shards=tuple(sorted(self.shards.bad)),
                order=self.folder.started.order,
                other_data=self.other_data,
                secrets=known(),
                launch=launch,
                launch_id=token,
            )
            began = time.perf_counter()
            times = self._supervisor(job).run()
            _add_worker_stages(stages, times, time.perf_counter() - began)
            with stages.time("score"):
                results = self._end_task(times)
        except Superseded:  # nothing more of the run may be written, nor delivered
            raise
        except BaseException as error:
            stopped = isinstance(error, StoppedRun)
            self.outbox.finish("KILLED" if stopped or isinstance(error, KeyboardInterrupt) else "FAILED")
            self.journal.add(
                Ended(launch=launch, how="stopped" if stopped else "failed", detail=str(error).partition("\n")[0])
            )
            self._deliver()
            raise
        with stages.time("MLflow"):
            self._deliver()
        self.folder.fence.check()
        summary = self._summary(results, times, stages, started)
        self.journal.add(Ended(launch=launch, how="finished"))
        accounted = account(self.journal.events())
        summary["goodput"] = accounted.goodput
        summary["time_accounted"] = accounted.seconds
        values = {f"time/{name}": seconds for name, seconds in accounted.seconds.items()}
        self.outbox.metrics({"time/goodput": accounted.goodput, **values}, AS_BARS)
        self.outbox.artifact(self.folder.write_summary(summary))
        self.outbox.tags({NOTE: self._description(summary)})
        self.outbox.finish()
        self.folder.keep(finished=True)
        self._deliver()
        return summary

    def _supervisor(self, job: Job) -> Supervisor:
        if self.local:
            from .worker import local_worker

            attempt: Callable[[Job], Any] = lambda job: local_worker(job, self.stop, self.show)  # noqa: E731
            fit_workers: Callable[[Job], Job] = lambda job: job  # noqa: E731
        else:
            from .attempt import Attempt

            attempt = lambda job: Attempt(job, self.stop, self.show).run()  # noqa: E731
            fit_workers = lambda job: wait_for_workers(  # noqa: E731
                job,
                self.experiment,
                resources=cluster_resources,
                stop=self.stop,
                asking=lambda: asking_for(training_demand(self.experiment)),
            )

        def next_attempt(job: Job) -> Any:
            run_id, seen = self.folder.started.mlflow_run_id, recorded_images(self.journal.events())
            return attempt(job.model_copy(update={"mlflow_run_id": run_id, "recorded_images": seen}))

        return Supervisor(
            job=job,
            journal=self.journal,
            attempt=next_attempt,
            fit_workers=lambda job: with_stage(fit_workers(job), self.experiment),
            rolled_back=lambda order: self.folder.keep(order=order),
            stop=self.stop,
            launch=self.folder.started.launches,
            first_attempt=last_attempt(self.journal.events()) + 1,
            fence=self.folder.fence,
        )

    def _begin_delivery(self) -> None:
        """Start the delivery. MLflow makes the run while workers start, and checkpoints name it.

        A worker in this process would import the same packages as MLflow, so it waits for that.
        """
        reason = answers(self.experiment.tracking_uri)
        if reason is not None:
            logger.warning(
                f"MLflow does not answer at {self.experiment.tracking_uri} ({reason}); training goes on, and its "
                f"records wait in {self.folder.root}"
            )
        self.delivery.start()
        if self.local and reason is None:
            self.delivery.drain(_RUN_SECONDS)

    def _deliver(self) -> None:
        """Wait for MLflow to take the records. The rest waits for the next launch, or for `runs sync`."""
        away = answers(self.experiment.tracking_uri) is not None
        left = self.delivery.drain(_DRAIN_SECONDS_AWAY if away else _DRAIN_SECONDS)
        if left:
            logger.warning(
                f"{left} records for MLflow wait in {self.folder.root} ({self.delivery.state})\n"
                f"  deliver them when it is back: {command('runs', 'sync', self.experiment.run_dir)}"
            )

    def _end_task(self, times: TrainingTimes) -> dict[str, Any]:
        final = read_final(self.folder.final_samples, times.final_attempt)
        return open_task(self.experiment).evaluate(final, self.shards.usable, self.outbox)

    def _description(self, summary: dict[str, Any]) -> str:
        """Return the description of the run's page in MLflow, with its scores: charts round to two decimals."""
        scores = [[name, summary.get(name)] for name in open_task(self.experiment).scores()]
        known = [row for row in scores if row[1] is not None]
        table = markdown_table(["final score", "value"], known) if known else ""
        return f"{self.experiment.description}\n\n{table}".strip()

    def _summary(
        self, results: dict[str, Any], times: TrainingTimes, stages: Stages, started: float
    ) -> dict[str, Any]:
        experiment, train = self.experiment, self.experiment.train
        checkpoints = self.folder.storage.checkpoints
        return {
            "name": experiment.name,
            **results,
            "images_seen": train.total_images,
            "train_seconds": times.train_seconds,
            "images_per_second": times.images / times.train_seconds if times.images else 0.0,
            "total_seconds": time.perf_counter() - started,
            "stage_seconds": stages.seconds,
            "launches": self.folder.started.launches,
            "num_workers": train.num_workers,
            "zero_stage": checkpoints.written_stage(),
            "run_dir": self.folder.storage.place,
            "weights_path": str(checkpoints.newest_weights()),
            "data_digest": self.shards.manifest.digest,
            "bad_shards": self.shards.bad,
            "mlflow_run_id": self.folder.started.mlflow_run_id,
            "tracking_uri": redact(experiment.tracking_uri),
        }


def _add_worker_stages(stages: Stages, times: TrainingTimes, wall: float) -> None:
    inside = times.train_seconds + times.hook_seconds + times.sample_seconds
    stages.add("workers up and down", max(wall - inside, 0.0))
    stages.add("train", times.train_seconds)
    stages.add("checkpoints and grids", times.hook_seconds)
    stages.add("sample", times.sample_seconds)
