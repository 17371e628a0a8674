"""Sweep keys of an experiment with Ray Tune: every trial is a run of its own, nested under one MLflow run."""

from __future__ import annotations

import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray import tune

from ..assemble import SPOOL_FOLDER
from ..config.compose import Composed, flatten
from ..config.errors import UserError
from ..config.schema import Experiment
from ..config.sweep import SweepConfig
from ..report.sweep_view import SweepDisplay
from ..report.tables import markdown_table
from ..tracking.courier import Courier
from ..tracking.mlflow import check_reachable
from ..tracking.pages import NOTE
from ..tracking.spool import Spool
from ..tracking.tracker import AS_BARS
from .finish import read_summary
from .lock import only_launch, refuse_if_under_way
from .pinned import pinned
from .population import member_trial, members_of
from .registering import register_best_trial
from .results import SweepResult, TrialEnd, figures_of, settle, tabulate, write_results
from .run_folder import STATE_FILE, RunState, check_same_config, open_run, read_state
from .search import Search, measuring, optuna_search, optuna_trial, search_of
from .session import check_resources, ray_session
from .signals import StopRequest, stop_on_signals
from .sweep_watch import Looking, Watch
from .train import check_inputs
from .trial import run_trial
from .trials import Trial, compose_trial, sweep_of, trials_of

# A trial's own process only waits for its workers. A whole CPU for it would deadlock two cores: the trial holds
# the CPU that its workers wait for.
_TRIAL_CPUS = 0.01
_MLFLOW_SECONDS = 60.0


@dataclass
class SweepJob:
    """What is swept."""

    composed: Composed
    """The sweep: its name, its folder, its tracking, and what trials share."""
    sweep: SweepConfig
    trials: list[Trial] = field(default_factory=list)
    """All trials, where they are known beforehand."""
    elsewhere: dict[str, Path] = field(default_factory=dict)
    """Trial → folder of a finished run of another sweep with the same settings, which is taken as its own."""

    @property
    def experiment(self) -> Experiment:
        """The sweep's experiment."""
        return self.composed.experiment

    @property
    def chosen_on_the_way(self) -> bool:
        """Optuna chooses each trial when its turn comes."""
        return self.sweep.search == "optuna"

    def run_dir(self, name: str) -> Path:
        """Folder of a trial's newest run."""
        if self.sweep.population is not None and (member := members_of(self.experiment).get(name)):
            name = member.run_name
        return self.elsewhere.get(name, self.experiment.run_dir / name)


def job_of(composed: Composed) -> SweepJob:
    """Return what the sweep section of an experiment asks for.

    Raises:
        UserError: there is none, or it is wrong.
    """
    composed = measuring(composed)
    sweep = sweep_of(composed.experiment)
    return SweepJob(composed, sweep, [] if sweep.search == "optuna" else trials_of(composed))


def run_sweep(job: SweepJob, display: SweepDisplay) -> SweepResult:
    """Run all trials that have not finished yet, as many at once as fit; the same call continues a sweep.

    Raises:
        UserError: something given is wrong, or the sweep is under way; nothing was started.
    """
    experiment = job.experiment
    refuse_if_under_way(experiment.run_dir)
    state = read_state(experiment.run_dir)
    if state is not None:
        check_same_config(state, experiment)
    shards = check_inputs(experiment)
    check_reachable(experiment.tracking_uri)  # trials are children of the sweep's run, which must be there
    if shards.bad:
        display.say(shards.notice)
    with ray_session(), only_launch(experiment.run_dir), stop_on_signals() as stop:
        concurrent = concurrent_trials(job)
        spool = Spool(experiment.run_dir / SPOOL_FOLDER)
        state = open_run(job.composed, shards, read_state(experiment.run_dir), spool)
        with _mlflow_run(experiment, state, spool, display.say) as state:
            assert state.mlflow_run_id is not None
            try:
                ended = _run(job, state.mlflow_run_id, concurrent, stop, display)
            except BaseException:
                spool.finish("FAILED")
                raise
            result = tabulate(job.sweep, ended, state.mlflow_run_id)
            for path in write_results(experiment, job.sweep, ended, result):
                spool.artifact(path)
            spool.metrics(figures_of(job.sweep, result), AS_BARS)
            table = f"{experiment.description}\n\n{markdown_table(result.columns, result.rows)}".lstrip()
            spool.tags({NOTE: pinned(experiment, job.sweep, state.mlflow_run_id, table)})
            spool.finish("KILLED" if result.stopped else "FAILED" if result.failed else "FINISHED")
            state.model_copy(update={"finished": not result.failed}).write(experiment.run_dir)
        settle(experiment.run_dir, display.say)
        if not result.stopped:
            register_best_trial(experiment, result.ends, display.say)
    return result


@contextmanager
def _mlflow_run(
    experiment: Experiment, state: RunState, spool: Spool, say: Callable[[str], None]
) -> Iterator[RunState]:
    """Wait until MLflow has the sweep's run; yield the state with its id; at the end deliver what came since.

    Raises:
        UserError: MLflow does not take the run.
    """

    def keep(run_id: str) -> None:
        nonlocal state
        state = state.model_copy(update={"mlflow_run_id": run_id})
        state.write(experiment.run_dir)

    courier = Courier(spool.folder, experiment.tracking_uri, run_id=state.mlflow_run_id, on_run_id=keep)
    courier.start()
    try:
        if courier.drain(_MLFLOW_SECONDS) or state.mlflow_run_id is None:
            raise UserError(f"MLflow at {experiment.tracking_uri} does not take the sweep: {courier.state}")
        try:
            yield state
        finally:
            if left := courier.drain(_MLFLOW_SECONDS):
                say(
                    f"{left} records for MLflow wait in {spool.folder} ({courier.state})\n"
                    f"  deliver them when it is back: causalfusion runs sync {experiment.run_dir}"
                )
    finally:
        courier.stop()


def concurrent_trials(job: SweepJob) -> int:
    """Return how many trials there is room for at once: workers, a task that reads data, and the trial's process.

    Raises:
        UserError: not even for one.
    """
    have = ray.cluster_resources()
    fits: list[float] = []
    for train, data in {_needs(one) for one in [job.experiment, *(trial.experiment for trial in job.trials)]}:
        workers, cpus, gpus = train
        check_resources(workers, cpus, gpus, data)
        fits.append(have["CPU"] / (workers * cpus + data + _TRIAL_CPUS))
        if gpus:
            fits.append(have["GPU"] / (workers * gpus))
    return max(1, min(int(min(fits)), job.sweep.max_concurrent or 1_000_000))


def _needs(experiment: Experiment) -> tuple[tuple[int, float, float], float]:
    train = experiment.train
    return (train.num_workers, train.cpus_per_worker, train.gpus_per_worker), experiment.data.cpus_per_task


def _run(job: SweepJob, parent: str, concurrent: int, stop: StopRequest, display: SweepDisplay) -> list[TrialEnd]:
    """Run what has not finished; return how every trial of the sweep ended."""
    experiment, sweep = job.experiment, job.sweep
    done = [TrialEnd.finished(trial.name, trial.values, summary) for trial, summary in _finished(job)]
    waiting = [trial for trial in job.trials if trial.name not in {end.name for end in done}]
    if job.chosen_on_the_way:
        search = optuna_search(sweep, experiment.run_dir, experiment.seed)
    else:
        # Schedulers compare trials with those that have finished: these report again what they had measured.
        trials = job.trials if sweep.measures_on_the_way else waiting
        search = search_of(sweep, trials, experiment.train.total_images, concurrent)
    display.say(
        f"{search.total} trials, {concurrent} at a time" + (f"; {len(done)} have finished before" if done else "")
    )
    if search.waiting and (waiting or job.chosen_on_the_way):
        new = _fit(job, search, parent, concurrent, stop, display, [end.name for end in done])
        return [*(end for end in done if end.name not in {one.name for one in new}), *new]
    return done


def _finished(job: SweepJob) -> Iterator[tuple[Trial, dict[str, Any]]]:
    """Yield the trials that have finished in earlier launches, with their summaries."""
    for trial in points_tried(job) if job.chosen_on_the_way else job.trials:
        run_dir = job.run_dir(trial.name)
        state = read_state(run_dir)
        if state is not None and state.finished:
            yield trial, read_summary(run_dir)


def points_tried(job: SweepJob) -> list[Trial]:
    """Return the trials of a search by Optuna that were begun, from their folders."""
    trials = []
    for state_file in sorted(job.experiment.run_dir.glob(f"*/{STATE_FILE}")):
        state = read_state(state_file.parent)
        assert state is not None
        config = dict(flatten(state.config))
        point = {key: config[key] for key in job.sweep.space}
        trials.append(compose_trial(job.composed, state_file.parent.name, point))
    return trials


def _fit(
    job: SweepJob,
    search: Search,
    parent: str,
    concurrent: int,
    stop: StopRequest,
    display: SweepDisplay,
    finished: Sequence[str],
) -> list[TrialEnd]:
    experiment, sweep, composed = job.experiment, job.sweep, job.composed
    by_name = {trial.name: trial for trial in job.trials}
    optuna = job.chosen_on_the_way

    def trial_process(config: dict[str, Any]) -> None:
        if optuna:
            trial = optuna_trial(composed, sweep, config)
        elif sweep.population is not None:
            trial = member_trial(composed, sweep, config)
        else:
            trial = by_name[config["trial"]]
        run_trial(trial, sweep, parent)

    metric = next(iter(sweep.targets))
    watch = Watch([*by_name], job.run_dir, experiment.train.total_images, metric, finished)
    # Tune prints its own set-up even at verbosity 0, unless told to use its older reporter.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    tuner = tune.Tuner(
        tune.with_resources(trial_process, {"CPU": _TRIAL_CPUS}),
        param_space=search.space,
        tune_config=tune.TuneConfig(
            max_concurrent_trials=concurrent,
            search_alg=search.algorithm,
            scheduler=search.scheduler,
            **search.options,
        ),
        run_config=tune.RunConfig(
            # Tune's own state is new at every launch; a trial that has finished says so from its run folder.
            name=f"launch-{time.time_ns()}",
            storage_path=str(experiment.run_dir / "tune"),
            callbacks=[watch],
            # The end of a member is no comparison: Tune asks the scheduler about any result that ends nothing.
            stop={"images": experiment.train.total_images} if sweep.population is not None else None,
            verbose=0,
        ),
    )
    # Tune ends its trials when it gets SIGINT, for which it has a handler of its own, but not at SIGTERM.
    stop.on_request = lambda _: signal.raise_signal(signal.SIGINT)
    with Looking(watch, display), warnings.catch_warnings():
        # It cannot be done: each member's process holds a training run of its own.
        warnings.filterwarnings("ignore", message="Consider boosting PBT performance by enabling `reuse_actors`")
        grid = tuner.fit()
    if len(grid) != search.waiting and not stop.reason:
        raise RuntimeError(f"Ray Tune returned {len(grid)} results for {search.waiting} trials")
    return [_end_of(job, result, stopped=stop.reason is not None) for result in grid]


def _end_of(job: SweepJob, result: Any, *, stopped: bool) -> TrialEnd:
    config, metrics = result.config or {}, result.metrics or {}
    if job.chosen_on_the_way:
        trial = optuna_trial(job.composed, job.sweep, config)
        name, values = trial.name, trial.values
    elif job.sweep.population is not None:
        # The configuration is of the last generation, and its `trial` that of whom it was copied from.
        run = metrics.get("trial") or config["trial"]
        name = run.partition(".g")[0]
        member = members_of(job.experiment).get(name)
        values = member.values if member else {}
    else:
        name = config["trial"]
        values = next(trial.values for trial in job.trials if trial.name == name)
    if result.error is not None:
        return TrialEnd(name, values, error=str(result.error).strip().splitlines()[-1])
    if "summary" in metrics:
        return TrialEnd.finished(name, values, metrics["summary"])
    return TrialEnd.unfinished(name, values, job.run_dir(name), stopped=stopped)
