"""Train one run from start to end: check the inputs, connect to Ray, then launch."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ...config.compose import Composed
from ...config.errors import UserError
from ...config.schema import Experiment
from ...data.prepare import prepare_data
from ...data.validate import CheckedShards, open_shards
from ...tasks import check_data, open_task
from ...tracking.mlflow import check_address
from ...train.pass_through import check_deepspeed
from ...train.progress import ProgressSink
from ..cluster.growth import training_demand, wait_for_room
from ..cluster.resources import check_training
from ..cluster.scheduled import lock_seconds
from ..cluster.session import ray_session
from ..cluster.shared_folders import check_shared_folders
from ..runs.exit_status import taken_over
from ..runs.folder import RunFolder
from ..runs.lock import Turn
from ..runs.owner import check_owner
from ..runs.signals import stop_on_signals
from .finetuning import check_start
from .launch import Launch, Stages

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """Result of a call of `run_training`."""

    summary: dict[str, Any]
    """Content of summary.json."""
    already_finished: bool = False
    """The run had finished before, so that nothing was trained."""


def run_training(
    composed: Composed,
    *,
    local: bool = False,
    show: ProgressSink = lambda _: None,
    parent: str | None = None,
    checked: CheckedShards | None = None,
    allow_changes: Sequence[str] = (),
) -> Outcome:
    """Train an experiment, or continue it, to its end. Then evaluate its samples.

    Args:
        composed: the experiment.
        local: run the worker in this process, without Ray.
        show: called with the newest progress, about twice a second.
        parent: MLflow run that this one is a child of.
        checked: the parent's check of the data and the tracking store. None: they are checked here.
        allow_changes: keys of the configuration that may differ from those that the run was started with.

    Raises:
        UserError: an argument is wrong. Nothing was started.
        NotFinished: the run was stopped, or gave up. The message says what to do.
    """
    started, stages = time.perf_counter(), Stages()
    experiment = composed.experiment
    if local and experiment.train.num_workers != 1:
        raise UserError(
            f"--local is one process, but train.num_workers={experiment.train.num_workers}\n"
            f"  add train.num_workers=1, or leave --local out"
        )
    folder = RunFolder.of(experiment)
    if parent is None:  # trials are of the user of their sweep
        check_owner(folder)
    turn = Turn(folder.refuse_if_under_way, lock_seconds(experiment))
    turn.wait()
    if finished := _finished(folder, experiment, allow_changes):
        return finished
    with stages.time("prepare"):
        shards = check_inputs(experiment, checked)
        check_deepspeed(experiment)
        task = open_task(experiment)
        task.prepare(shards)
        if experiment.evaluation.while_training:  # the first rank would train it while the others wait for it
            task.classifier_of(shards)
    if shards.bad:
        logger.warning(shards.notice)
    if folder.state is not None and folder.state.bad_shards != sorted(shards.bad):
        logger.warning(
            "the run had other shards before: the order of the rows to come is another one, and in the epoch under "
            "way some rows may come twice and others not at all"
        )
    with (
        _workers_session(experiment, local, stages),
        folder.lock(turn=turn),
        stop_on_signals() as stop,
    ):
        # Another launch may have come between the first look and the lock.
        if parent is None:
            check_owner(folder)
        if finished := _finished(folder, experiment, allow_changes):
            return finished
        with stages.time("prepare"):
            if not local:
                check_shared_folders(experiment, folder.root if experiment.run_url is None else None)
            shutil.rmtree(folder.ray, ignore_errors=True)  # Ray's own state is never read again
            folder.open(composed, shards, parent)
        other_data = "data.digest" in allow_changes
        launch = Launch(experiment, folder, shards, stop, show, local, other_data)
        try:
            with taken_over(folder.root):
                return Outcome(launch.run(stages, started))
        finally:
            launch.delivery.stop()


def _finished(folder: RunFolder, experiment: Experiment, allow_changes: Sequence[str]) -> Outcome | None:
    """Check that the configuration is that of the run's start. Return the outcome if the run has finished."""
    folder.check_config(experiment, allow_changes)
    return Outcome(folder.read_summary(), already_finished=True) if folder.finished else None


def check_inputs(experiment: Experiment, checked: CheckedShards | None = None) -> CheckedShards:
    """Check the task, the tracking store's address, the shards, and the task against them, before anything starts.

    Args:
        experiment: the one to train.
        checked: an earlier check with the same tracking store. Its verdict on the same shards is taken.

    Raises:
        UserError: the first fault found.
    """
    data, task = experiment.data, open_task(experiment)
    if checked is None or checked.folder != data.path:
        checked = None
        check_address(experiment.tracking_uri)
        prepare_data(data)
    shards = open_shards(data.path, max_bad_rows=data.max_bad_rows, hashes=data.verify == "hash", known=checked)
    check_data(task, shards)
    check_start(experiment, shards.manifest)
    return shards


@contextmanager
def _workers_session(experiment: Experiment, local: bool, stages: Stages) -> Iterator[None]:
    if local:
        yield
        return
    started = time.perf_counter()
    with ray_session():
        wait_for_room(
            lambda have: check_training(experiment, have),
            training_demand(experiment),
            experiment.supervision.resource_seconds,
        )
        stages.add("start Ray", time.perf_counter() - started)
        yield
