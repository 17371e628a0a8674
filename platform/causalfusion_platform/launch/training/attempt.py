"""One attempt at training on Ray: start the workers, show their progress, and end them when they hang."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import ray
import ray.train.torch
from ray.train import RunConfig, ScalingConfig
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ...assemble import Job
from ...ray_private import draining_nodes, single_attempt, small_trainer, torch_config
from ...train.control import STARTING
from ...train.progress import ProgressSink
from ..cluster.failures import Hang, Lost
from ..cluster.interface import use_interface_of_node
from ..runs.exit_status import StoppedRun
from ..runs.signals import StopRequest
from .entry import enter_worker
from .progress_actor import Commands, GroupStatus, ProgressActor, WorkerStatus

logger = logging.getLogger(__name__)

FOLLOW_SECONDS = 0.5
SILENT_SECONDS = 5.0
"""Seconds without a heartbeat after which a worker is stopped or lost. Heartbeats come every second."""
DUMP_SECONDS = 3.0
"""Seconds for the workers to write their stacks before they are ended."""
END_SECONDS = 20.0
"""Longest wait until the state of silent workers is noted and they are ended."""
_DRAIN_POLL_SECONDS = 2.0
_LATE_SECONDS = 60.0
"""Seconds without a first worker after which the terminal says so, once."""


class Attempt:
    """One group of Ray Train workers, as the driver sees it."""

    def __init__(self, job: Job, stop: StopRequest, show: ProgressSink) -> None:
        self.job, self.stop, self.show = job, stop, show
        # On another node it would be lost with that node's workers. A driver on a node without CPUs needs none.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor = ray.remote(ProgressActor).options(num_cpus=0, scheduling_strategy=here)
        self.actor = actor.remote(str(job.paths.root))
        self.error: BaseException | None = None
        self.hang: Hang | None = None
        self.ordered = False
        self.images = 0
        self.drains_read = 0.0
        self.begun, self.late, self.started = time.monotonic(), False, False

    def run(self) -> dict[str, Any]:
        """Train until the workers report the end, and return that report.

        Raises:
            Lost: they have ended without one.
            StoppedRun: a stop was asked for before any worker had started. Nothing waits for them then.
        """
        # A thread of its own, so that this one sees signals and progress.
        thread = threading.Thread(target=self._fit, name="ray train", daemon=True)
        thread.start()
        try:
            while thread.is_alive():
                thread.join(FOLLOW_SECONDS)
                self._follow()
                self._look_at_start()
            ended = self._follow().ended
        finally:
            ray.kill(self.actor)
        if ended is None:
            raise Lost(self.error, self.hang, self.images)
        return ended

    def _look_at_start(self) -> None:
        if self.started:
            return
        name, limit = self.job.experiment.name, self.job.experiment.supervision.start_seconds
        if self.stop.reason is not None:
            raise StoppedRun(
                f"run {name!r} was {self.stop.reason} before its workers had started\n"
                "  the same command continues it"
            )
        if not self.late and time.monotonic() - self.begun > _LATE_SECONDS:
            self.late = True
            logger.warning(
                f"no worker has started for {_LATE_SECONDS:.0f} s: the cluster may be full; waiting up to "
                f"{limit:.0f} s (supervision.start_seconds)"
            )

    def _fit(self) -> None:
        try:
            _trainer(self.job, self.actor).fit()
        except BaseException as error:
            self.error = error

    def _follow(self) -> GroupStatus:
        try:
            status: GroupStatus = ray.get(self.actor.read.remote(), timeout=60)
        except ray.exceptions.RayError:
            return GroupStatus()  # the actor was lost; so will be the workers that cannot reach it
        self.started = self.started or bool(status.workers) or status.ended is not None
        for line in status.notes:
            logger.info(line)
        if status.progress is not None:
            self.images = status.progress.images
            self.show(status.progress)
        self.images = max([self.images, *(worker.mark[1] for worker in status.workers)])
        if self.stop.reason is None and self._is_draining(status):
            logger.warning("a node of this run is being taken back")
            self.stop.ask("preempted")
        if self.stop.reason is not None and not self.ordered:
            self.ordered = True
            self.actor.command.remote(Commands(stop=self.stop.reason))
        if (
            self.hang is None
            and status.ended is None
            and any(self._hangs(worker, status.now) for worker in status.workers)
        ):
            self._end_hang(status)
        return status

    def _hangs(self, worker: WorkerStatus, now: float) -> bool:
        limits = self.job.experiment.supervision
        limit = limits.start_seconds if worker.mark[0] in STARTING else limits.hang_seconds
        return now - worker.moved > limit

    def _is_draining(self, status: GroupStatus) -> bool:
        if time.monotonic() - self.drains_read < _DRAIN_POLL_SECONDS:
            return False
        self.drains_read = time.monotonic()
        draining = draining_nodes()
        return any(worker.place.node_id in draining for worker in status.workers)

    def _end_hang(self, status: GroupStatus) -> None:
        """Make all workers write their stacks, then end them. Those that do not answer are killed."""
        stacks = self.job.paths.hangs / f"attempt-{self.job.attempt:04d}"
        silent = [worker for worker in status.workers if status.now - worker.heard > SILENT_SECONDS]
        self.actor.command.remote(Commands(dump_to=stacks.relative_to(self.job.paths.root).as_posix()))
        time.sleep(DUMP_SECONDS)
        still = max(status.now - worker.moved for worker in status.workers)
        what = [_describe(worker, status.now) for worker in (silent or status.workers)]
        self.hang = Hang(f"no progress for {still:.0f} s; {'; '.join(what)}", stacks)
        logger.warning(f"hang: {self.hang.detail}\n  stacks of all threads: {stacks}")
        ends = {}
        for worker in silent:
            there = NodeAffinitySchedulingStrategy(worker.place.node_id, soft=False)
            end = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(_end_process)
            ends[end.remote(worker.place.pid)] = worker.place.rank
        # Once others leave, Ray ends the group: the state of a silent worker would be lost.
        if ends:
            ended, _ = ray.wait(list(ends), num_returns=len(ends), timeout=END_SECONDS)
            for end in ended:
                _keep_status(end, stacks / f"rank-{ends[end]:05d}.status.txt")
        self.actor.command.remote(Commands(leave=True))


def _describe(worker: WorkerStatus, now: float) -> str:
    place, (doing, images, _) = worker.place, worker.mark
    silence = now - worker.heard
    life = (
        f"gives no sign of life for {silence:.0f} s" if silence > SILENT_SECONDS else f"stands still in {doing!r}"
    )
    return f"rank {place.rank} (process {place.pid} on {place.host}) {life}, {images} images seen"


def _end_process(pid: int) -> str:
    """Kill a worker's process on its node, and return the state that it was in."""
    status = Path(f"/proc/{pid}/status")
    text = status.read_text(encoding="utf-8") if status.is_file() else ""
    os.kill(pid, signal.SIGKILL)
    return text


def _keep_status(end: Any, path: Path) -> None:
    try:
        text: str = ray.get(end)
    except ray.exceptions.RayError:  # it had ended by itself
        return
    if text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _trainer(job: Job, actor: Any) -> Any:
    train, start_seconds = job.experiment.train, job.experiment.supervision.start_seconds
    resources = {"CPU": train.cpus_per_worker}
    if train.gpus_per_worker:
        resources["GPU"] = train.gpus_per_worker
    return small_trainer(start_seconds)(
        enter_worker,
        train_loop_config={"job": job.model_dump_json(), "actor": actor},
        torch_config=torch_config(
            "nccl" if train.gpus_per_worker else "gloo", start_seconds, use_interface_of_node
        ),
        scaling_config=ScalingConfig(
            num_workers=train.num_workers,
            use_gpu=bool(train.gpus_per_worker),
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            # Ray's own state is new at every attempt. Runs resume from their own verified checkpoints, and
            # `supervise` retries.
            name=f"attempt-{job.attempt:04d}-{time.time_ns()}",
            storage_path=str(job.paths.ray),
            failure_config=single_attempt(),
        ),
    )
