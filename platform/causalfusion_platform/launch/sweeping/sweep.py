"""Sweep keys of an experiment with Ray Tune: every trial is a run of its own, nested under one MLflow run."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ...config.commands import command
from ...config.errors import NotNow, UserError
from ...data.validate import CheckedShards
from ...report.sweeps.live import SweepDisplay
from ...report.tables import markdown_table
from ...storage.fence import Fence
from ...tasks import open_task
from ...tracking.mlflow import check_reachable
from ...tracking.pages import NOTE
from ...tracking.tracker import AS_BARS
from ..cluster.scheduled import lock_seconds
from ..cluster.session import ray_session
from ..runs.exit_status import taken_over
from ..runs.folder import RunFolder
from ..runs.lock import Turn
from ..runs.owner import check_owner
from ..runs.signals import StopRequest, stop_on_signals
from ..training.train import check_inputs
from .comparable import check_comparable, comparable
from .description import pinned
from .job import SweepJob, finished_trials
from .population import newest_of
from .register import register_best_trial
from .results import SPEEDS, STOPPED, SweepResult, TrialEnd, figures_of, settle, tabulate, write_results
from .search import optuna_search, search_of
from .tuning import concurrent_trials, fit

logger = logging.getLogger(__name__)

_MLFLOW_SECONDS = 60.0


def run_sweep(job: SweepJob, display: SweepDisplay) -> SweepResult:
    """Run all trials that have not finished yet, as many at once as fit. The same call continues a sweep.

    Raises:
        UserError: an argument is wrong, or the sweep is under way. Nothing was started.
    """
    experiment = job.experiment
    folder = RunFolder(experiment.run_dir)
    check_owner(folder)
    turn = Turn(folder.refuse_if_under_way, lock_seconds(experiment))
    turn.wait()
    job.check_folder(folder)
    shards = check_inputs(experiment)
    scores = open_task(experiment).scores_on(shards.manifest)
    absent = [target for target in job.sweep.targets if target not in {*scores, *SPEEDS}]
    if absent and scores:
        raise UserError(
            f"trials are to be ranked by {', '.join(absent)}, which runs on the data in {experiment.data.path} do "
            f"not measure\n  they measure: {', '.join([*scores, *SPEEDS])}"
        )
    if job.chosen_on_the_way and absent:
        raise UserError(
            f"Optuna learns from {', '.join(absent)}, which runs of task={experiment.task} do not measure on the "
            f"data in {experiment.data.path}: its latents are of {shards.manifest.autoencoder.name}\n"
            f"  draw points at random (sweep.search=random), and measure the runs: causalfusion evaluate RUN"
        )
    check_reachable(experiment.tracking_uri)  # trials are children of the sweep's run, which must be there
    if shards.bad:
        logger.warning(shards.notice)
    # Ray is started after the checks, and signals are handled after that: Ray has a handler of its own.
    with folder.lock(turn=turn), ExitStack() as started:
        check_owner(folder)
        job.check_folder(folder)  # another launch may have come before the lock
        done = [TrialEnd.finished(trial.name, trial.values, summary) for trial, summary in finished_trials(job)]
        job.checked = {experiment.data.path: shards} | _check_others(job, [end.name for end in done])
        done = check_comparable(job, done)
        started.enter_context(ray_session())
        stop = started.enter_context(stop_on_signals())
        concurrent = concurrent_trials(job)
        folder.open(job.composed, shards)
        started.enter_context(taken_over(folder.root))
        outbox = folder.outbox
        with _mlflow_run(folder) as run_id:
            try:
                ended = _run(job, done, run_id, concurrent, stop, display, folder.fence)
                folder.fence.check()
            except BaseException:
                outbox.finish("FAILED")
                raise
            ended = comparable(ended)
            logger.info("writing the results and the report")
            result = tabulate(job.sweep, ended, run_id)
            for path in write_results(experiment, job.sweep, ended, result):
                outbox.artifact(path)
            outbox.metrics(figures_of(job.sweep, result), AS_BARS)
            table = f"{experiment.description}\n\n{markdown_table(result.columns, result.rows)}".lstrip()
            outbox.tags({NOTE: pinned(experiment, job.sweep, run_id, table)})
            outbox.finish("KILLED" if result.stopped else "FAILED" if result.failed else "FINISHED")
            folder.keep(finished=not result.failed)
        settle(experiment.run_dir)
        if not result.stopped:
            register_best_trial(experiment, result.ends)
    return result


def _check_others(job: SweepJob, finished: Collection[str]) -> dict[Path, CheckedShards]:
    """Check other folders of shards that trials read. Each trial reports the faults of its own."""
    left = [trial.experiment for trial in job.trials if trial.name not in finished]
    found: dict[Path, CheckedShards] = {}
    for experiment in left:
        if experiment.data.path not in {job.experiment.data.path, *found}:
            with suppress(UserError):
                found[experiment.data.path] = check_inputs(experiment)
    return found


@contextmanager
def _mlflow_run(folder: RunFolder) -> Iterator[str]:
    """Wait until MLflow has the sweep's run, and yield its id. At the end deliver the later records.

    Raises:
        UserError: MLflow does not take the run.
    """
    uri = folder.started.tracking_uri
    delivery = folder.delivery()
    delivery.start()
    try:
        if delivery.drain(_MLFLOW_SECONDS) or (run_id := folder.started.mlflow_run_id) is None:
            raise NotNow(f"MLflow at {uri} does not take the sweep: {delivery.state}")
        try:
            yield run_id
        finally:
            if left := delivery.drain(_MLFLOW_SECONDS):
                logger.warning(
                    f"{left} records for MLflow wait in {folder.root} ({delivery.state})\n"
                    f"  deliver them when it is back: {command('runs', 'sync', folder.root)}"
                )
    finally:
        delivery.stop()


def _run(
    job: SweepJob,
    done: list[TrialEnd],
    parent: str,
    concurrent: int,
    stop: StopRequest,
    display: SweepDisplay,
    fence: Fence,
) -> list[TrialEnd]:
    """Run the trials that have not finished before (`done`). Return the end of every trial of the sweep."""
    experiment, sweep = job.experiment, job.sweep
    names = {end.name for end in done}
    waiting = [newest_of(experiment, trial) for trial in job.trials if trial.name not in names]
    if job.chosen_on_the_way:
        search = optuna_search(sweep, experiment.run_dir, experiment.seed)
    else:
        # ASHA compares trials with those that have finished, so that these report their measurements again.
        trials = job.trials if sweep.asha is not None else waiting
        search = search_of(sweep, trials, experiment.train.total_images, concurrent, total=len(job.trials))
    logger.info(
        f"{search.total} trials, {concurrent} at a time" + (f"; {len(done)} have finished before" if done else "")
    )
    if search.waiting and (waiting or job.chosen_on_the_way):
        new = fit(job, search, parent, concurrent, stop, display, [end.name for end in done], fence)
        # A finished trial stays finished, even if ASHA stops it in another order of reports. A point that Optuna
        # has chosen twice is one trial.
        ended = {end.name: end for end in [*sorted(new, key=lambda end: end.summary is not None), *done]}
        # Tune makes trials one after the other: after a stop it has not made all of them.
        left = [trial for trial in waiting if trial.name not in ended]
        return [*ended.values(), *(TrialEnd(trial.name, trial.values, error=STOPPED) for trial in left)]
    return done
