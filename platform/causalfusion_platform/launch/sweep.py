"""Sweep keys of an experiment with Ray Tune: every trial is a run of its own, nested under one MLflow run."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune

from ..assemble import SPOOL_FOLDER
from ..config.compose import Composed
from ..config.errors import UserError
from ..config.schema import Experiment
from ..report.tables import cell, markdown_table
from ..tracking.courier import Courier
from ..tracking.mlflow import check_reachable
from ..tracking.spool import Spool
from .lock import only_launch, refuse_if_under_way
from .run_folder import RunState, check_same_config, open_run, read_state
from .session import check_resources, ray_session
from .signals import StopRequest, stop_on_signals
from .train import check_inputs, run_training
from .trials import Trial, compose_trial, trials_of

# A trial's own process only waits for its workers. A whole CPU for it would deadlock two cores: the trial holds
# the CPU that its workers wait for.
_TRIAL_CPUS = 0.01
_MLFLOW_SECONDS = 60.0
_COLUMNS = ("class_accuracy", "fd_digits_cnn", "images_per_second", "total_seconds")
_STOPPED = "stopped before its end"


@dataclass(frozen=True)
class SweepResult:
    """What a sweep came to."""

    columns: list[str]
    rows: list[list[Any]]
    """One row a trial, the best first: its values, then what was measured (or its error)."""
    failed: int
    """Trials without a result: failed, or stopped. The same call runs them again."""
    stopped: bool
    """A signal ended the sweep before its trials were done."""
    mlflow_run_id: str


@dataclass(frozen=True)
class _Ended:
    """What became of one trial: either is None."""

    trial: Trial
    summary: dict[str, Any] | None
    error: str | None


def run_sweep(composed: Composed, say: Callable[[str], None]) -> SweepResult:
    """Run all trials that have not finished yet, as many at once as fit; the same call continues a sweep.

    Args:
        composed: an experiment with a sweep section.
        say: called with a line when a trial ends.

    Raises:
        UserError: something given is wrong, or the sweep is under way; nothing was started.
    """
    experiment = composed.experiment
    trials = trials_of(experiment)
    refuse_if_under_way(experiment.run_dir)
    state = read_state(experiment.run_dir)
    if state is not None:
        check_same_config(state, experiment)
    shards = check_inputs(experiment)
    check_reachable(experiment.tracking_uri)  # trials are children of the sweep's run, which must be there
    if shards.bad:
        say(shards.notice)
    with ray_session(), only_launch(experiment.run_dir), stop_on_signals() as stop:
        concurrent = _concurrent_trials(experiment)
        spool = Spool(experiment.run_dir / SPOOL_FOLDER)
        state = open_run(composed, shards, read_state(experiment.run_dir), spool)
        with _mlflow_run(experiment, state, spool, say) as state:
            assert state.mlflow_run_id is not None
            say(f"{len(trials)} trials, {concurrent} at a time")
            try:
                ended = _fit(composed, trials, state.mlflow_run_id, concurrent, stop, say)
            except BaseException:
                spool.finish("FAILED")
                raise
            result = _tabulate(experiment, ended, state.mlflow_run_id)
            path = experiment.run_dir / "results.md"
            path.write_text(markdown_table(result.columns, result.rows))
            spool.artifact(path)
            spool.finish("KILLED" if result.stopped else "FAILED" if result.failed else "FINISHED")
            state.model_copy(update={"finished": not result.failed}).write(experiment.run_dir)
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


class Announce(tune.Callback):  # type: ignore[misc]
    """Say when a trial ends."""

    def __init__(self, total: int, metric: str, say: Callable[[str], None]) -> None:
        self.total, self.metric, self.say = total, metric, say
        self.ended = 0

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks to restore them elsewhere; a terminal cannot travel.
        return {**self.__dict__, "say": _say_nothing}

    def on_trial_complete(self, *_: Any, trial: Any, **__: Any) -> None:
        """Name the trial and its metric; Tune completes trials that it was made to stop, too."""
        summary = trial.last_result
        if "trial" in summary:
            self._announce(f"{summary['trial']}  {self.metric} {cell(summary.get(self.metric))}")

    def on_trial_error(self, *_: Any, trial: Any, **__: Any) -> None:
        """Name the trial that failed."""
        self._announce(f"{trial.config['trial']}  failed")

    def _announce(self, text: str) -> None:
        self.ended += 1
        self.say(f"trial {self.ended}/{self.total}  {text}")


def _say_nothing(_: str) -> None:
    pass


def _concurrent_trials(experiment: Experiment) -> int:
    train, data = experiment.train, experiment.data
    check_resources(train.num_workers, train.cpus_per_worker, train.gpus_per_worker, data.cpus_per_task)
    have = ray.cluster_resources()
    fits = [have["CPU"] / (train.num_workers * train.cpus_per_worker + data.cpus_per_task + _TRIAL_CPUS)]
    if train.gpus_per_worker:
        fits.append(have["GPU"] / (train.num_workers * train.gpus_per_worker))
    return max(1, int(min(fits)))


def _fit(
    composed: Composed,
    trials: list[Trial],
    parent: str,
    concurrent: int,
    stop: StopRequest,
    say: Callable[[str], None],
) -> list[_Ended]:
    experiment = composed.experiment
    assert experiment.sweep is not None
    by_name = {trial.name: trial for trial in trials}

    def run_trial(config: dict[str, Any]) -> None:
        trial = by_name[config["trial"]]
        summary = run_training(compose_trial(composed, trial), parent=parent).summary
        tune.report({**summary, "trial": trial.name})

    # Tune prints its own set-up even at verbosity 0, unless told to use its older reporter.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    tuner = tune.Tuner(
        tune.with_resources(run_trial, {"CPU": _TRIAL_CPUS}),
        param_space={"trial": tune.grid_search(list(by_name))},
        tune_config=tune.TuneConfig(max_concurrent_trials=concurrent),
        run_config=tune.RunConfig(
            # Tune's own state is new at every launch; a trial that has finished says so from its run folder.
            name=f"launch-{time.time_ns()}",
            storage_path=str(experiment.run_dir / "tune"),
            callbacks=[Announce(len(trials), experiment.sweep.metric, say)],
            verbose=0,
        ),
    )
    # Tune ends its trials when it gets SIGINT, for which it has a handler of its own, but not at SIGTERM.
    stop.on_request = lambda _: signal.raise_signal(signal.SIGINT)
    grid = tuner.fit()
    if len(grid) != len(trials):
        raise RuntimeError(f"Ray Tune returned {len(grid)} results for {len(trials)} trials")
    return [_ended(by_name[result.config["trial"]], result) for result in grid]


def _ended(trial: Trial, result: Any) -> _Ended:
    if result.error is not None:
        return _Ended(trial, None, str(result.error).strip().splitlines()[-1])
    if "trial" not in (result.metrics or {}):  # a signal: Tune stops its trials and returns as if all were well
        return _Ended(trial, None, _STOPPED)
    return _Ended(trial, result.metrics, None)


def _tabulate(experiment: Experiment, ended: list[_Ended], run_id: str) -> SweepResult:
    assert experiment.sweep is not None
    metric, sign = experiment.sweep.metric, -1 if experiment.sweep.mode == "max" else 1
    measured = [metric, *(column for column in _COLUMNS if column != metric)]

    def rank(one: _Ended) -> tuple[bool, float]:
        value = None if one.summary is None else one.summary.get(metric)
        return value is None, 0.0 if value is None else sign * float(value)

    rows = []
    for one in sorted(ended, key=rank):
        cells: list[Any] = [one.error, *[None] * (len(measured) - 1)]
        if one.summary is not None:
            cells = [one.summary.get(column) for column in measured]
        rows.append([*one.trial.values.values(), *cells])
    return SweepResult(
        columns=[*experiment.sweep.grid, *measured],
        rows=rows,
        failed=sum(one.error is not None for one in ended),
        stopped=any(one.error == _STOPPED for one in ended),
        mlflow_run_id=run_id,
    )
