"""Sweep keys of an experiment with Ray Tune: every trial is a run of its own, nested under one MLflow run."""

from __future__ import annotations

import copy
import itertools
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune

from ..assemble import SPOOL_FOLDER
from ..config.compose import Composed, with_overrides
from ..config.errors import UserError
from ..config.schema import Experiment
from ..report.tables import cell, markdown_table
from ..tracking.courier import Courier
from ..tracking.mlflow import MlflowTracker, check_reachable
from ..tracking.spool import Spool
from .run_folder import RunState, check_same_config, open_run, read_state
from .session import check_resources, ray_session
from .train import check_inputs, run_training

# A trial's own process only waits for its workers. A whole CPU for it would deadlock two cores: the trial holds
# the CPU that its workers wait for.
_TRIAL_CPUS = 0.01
_MLFLOW_SECONDS = 60.0
_COLUMNS = ("class_accuracy", "fd_digits_cnn", "images_per_second", "total_seconds")


@dataclass(frozen=True)
class Trial:
    """One point of the search space."""

    name: str
    """What differs, such as ar_decay-0.9; the name of its run and folder."""
    values: dict[str, Any]
    """Dotted key → value."""


@dataclass(frozen=True)
class SweepResult:
    """What a sweep came to."""

    columns: list[str]
    rows: list[list[Any]]
    """One row a trial, the best first: its values, then what was measured (or its error)."""
    failed: int
    """Trials without a result: failed, or stopped. The same call runs them again."""
    mlflow_run_id: str


def trials_of(experiment: Experiment) -> list[Trial]:
    """Return every combination of the sweep's grid.

    Raises:
        UserError: the experiment has no sweep section, or a combination is not a valid experiment.
    """
    if experiment.sweep is None:
        raise UserError(
            f"experiment {experiment.name!r} has no sweep section\n"
            f"  try the shipped one: causalfusion sweep sweeps/gamma; or add one, such as\n"
            f"  'sweep.grid={{objective.ar_decay: [1.0, 0.9]}}'"
        )
    grid = experiment.sweep.grid
    empty = [key for key, choices in grid.items() if not choices]
    if empty:
        raise UserError(
            f"sweep.grid has no values for {', '.join(empty)}\n"
            f"  give some, such as 'sweep.grid={{{empty[0]}: [1, 2]}}'"
        )
    trials = []
    for values in itertools.product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        parts = [f"{key.rsplit('.', 1)[-1]}-{value}" for key, value in chosen.items()]
        trial = Trial(re.sub(r"[^A-Za-z0-9._-]+", "_", ".".join(parts)), chosen)
        trial_experiment(experiment, trial)
        trials.append(trial)
    if len({trial.name for trial in trials}) != len(trials):
        raise UserError(f"sweep.grid has a combination twice: {', '.join(trial.name for trial in trials)}")
    return trials


def trial_experiment(experiment: Experiment, trial: Trial) -> Experiment:
    """Return the experiment of one trial: the sweep's own with the trial's values, in a folder below the sweep's.

    Raises:
        UserError: a value is not allowed.
    """
    place = {"name": trial.name, "runs": str(experiment.run_dir), "tracking.uri": experiment.tracking_uri}
    changed = with_overrides(experiment, {**trial.values, **place}, f"{experiment.name}/{trial.name}")
    return changed.model_copy(update={"sweep": None})


def run_sweep(composed: Composed, say: Callable[[str], None]) -> SweepResult:
    """Run all trials that have not finished yet, as many at once as fit; the same call continues a sweep.

    Args:
        composed: an experiment with a sweep section.
        say: called with a line when a trial ends.

    Raises:
        UserError: something given is wrong; nothing was started.
    """
    experiment = composed.experiment
    trials = trials_of(experiment)
    assert experiment.sweep is not None
    state = read_state(experiment.run_dir)
    if state is not None:
        check_same_config(state, experiment)
    shards = check_inputs(experiment)
    check_reachable(experiment.tracking_uri)  # trials are children of the sweep's run, which must be there
    if shards.bad:
        say(shards.notice)
    with ray_session():
        concurrent = _concurrent_trials(experiment)
        spool = Spool(experiment.run_dir / SPOOL_FOLDER)
        state = open_run(composed, shards, state, spool)
        state = _deliver(spool, experiment, state)
        assert state.mlflow_run_id is not None
        tracker = MlflowTracker(experiment.tracking_uri, state.mlflow_run_id)
        say(f"{len(trials)} trials, {concurrent} at a time")
        try:
            results = _fit(composed, trials, state.mlflow_run_id, concurrent, say)
        except BaseException:
            tracker.finish("FAILED")
            raise
    result = _tabulate(experiment, results, state.mlflow_run_id)
    path = experiment.run_dir / "results.md"
    path.write_text(markdown_table(result.columns, result.rows))
    tracker.artifact(path)
    tracker.finish("FAILED" if result.failed else "FINISHED")
    state.model_copy(update={"finished": not result.failed}).write(experiment.run_dir)
    return result


def _deliver(spool: Spool, experiment: Experiment, state: RunState) -> RunState:
    """Wait until MLflow has the sweep's run; return the state with its id.

    Raises:
        UserError: it does not take it.
    """
    ids = [state.mlflow_run_id] if state.mlflow_run_id else []
    courier = Courier(spool.folder, experiment.tracking_uri, run_id=state.mlflow_run_id, on_run_id=ids.append)
    courier.start()
    left = courier.drain(_MLFLOW_SECONDS)
    courier.stop()
    if left or not ids:
        raise UserError(f"MLflow at {experiment.tracking_uri} does not take the sweep: {courier.state}")
    state = state.model_copy(update={"mlflow_run_id": ids[-1]})
    state.write(experiment.run_dir)
    return state


class Announce(tune.Callback):  # type: ignore[misc]
    """Say when a trial ends."""

    def __init__(self, total: int, metric: str, say: Callable[[str], None]) -> None:
        self.total, self.metric, self.say = total, metric, say
        self.ended = 0

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks to restore them elsewhere; a terminal cannot travel.
        return {**self.__dict__, "say": _say_nothing}

    def on_trial_complete(self, *_: Any, trial: Any, **__: Any) -> None:
        """Name the trial and its metric."""
        summary = trial.last_result
        self._announce(f"{summary['trial']}  {self.metric} {cell(summary.get(self.metric))}")

    def on_trial_error(self, *_: Any, trial: Any, **__: Any) -> None:
        """Name the trial that failed."""
        self._announce(f"{trial.config['trial']}  failed")

    def _announce(self, text: str) -> None:
        self.ended += 1
        self.say(f"trial {self.ended}/{self.total}  {text}")


def _say_nothing(_: str) -> None:
    pass


def sweep_metric(experiment: Experiment) -> str:
    """Return the number by which trials are ranked."""
    assert experiment.sweep is not None
    return experiment.sweep.metric


def _concurrent_trials(experiment: Experiment) -> int:
    train, data = experiment.train, experiment.data
    check_resources(train.num_workers, train.cpus_per_worker, train.gpus_per_worker, data.cpus_per_task)
    have = ray.cluster_resources()
    fits = [have["CPU"] / (train.num_workers * train.cpus_per_worker + data.cpus_per_task + _TRIAL_CPUS)]
    if train.gpus_per_worker:
        fits.append(have["GPU"] / (train.num_workers * train.gpus_per_worker))
    return max(1, int(min(fits)))


def _fit(
    composed: Composed, trials: list[Trial], parent: str, concurrent: int, say: Callable[[str], None]
) -> list[tuple[Trial, dict[str, Any] | None, str | None]]:
    experiment = composed.experiment
    by_name = {trial.name: trial for trial in trials}

    def run_trial(config: dict[str, Any]) -> None:
        trial = by_name[config["trial"]]
        nested = Composed(trial_experiment(experiment, trial), _as_written(composed, trial))
        summary = run_training(nested, parent=parent).summary
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
            callbacks=[Announce(len(trials), sweep_metric(experiment), say)],
            verbose=0,
        ),
    )
    grid = tuner.fit()
    if len(grid) != len(trials):
        raise RuntimeError(f"Ray Tune returned {len(grid)} results for {len(trials)} trials")
    results = []
    for result in grid:
        trial = by_name[result.config["trial"]]
        metrics, error = result.metrics or {}, None
        if result.error is not None:
            error = str(result.error).strip().splitlines()[-1]
        elif "trial" not in metrics:  # Ctrl-C: Tune stops its trials and returns as if all were well
            error = "stopped before its end"
        results.append((trial, None if error else metrics, error))
    return results


def _as_written(composed: Composed, trial: Trial) -> dict[str, Any]:
    """Return the sweep's tree as written, less what a trial sets itself: the rest may hold interpolations."""
    tree = copy.deepcopy(composed.unresolved)
    for key in ("name", "runs", "sweep", *trial.values):
        *path, last = key.split(".")
        node = tree
        for part in path:
            node = node.get(part, {})
        node.pop(last, None)
    return tree


def _tabulate(
    experiment: Experiment, results: list[tuple[Trial, dict[str, Any] | None, str | None]], run_id: str
) -> SweepResult:
    assert experiment.sweep is not None
    metric, sign = sweep_metric(experiment), -1 if experiment.sweep.mode == "max" else 1
    measured = [metric, *(column for column in _COLUMNS if column != metric)]

    def rank(entry: tuple[Trial, dict[str, Any] | None, str | None]) -> tuple[bool, float]:
        summary = entry[1]
        value = None if summary is None else summary.get(metric)
        return value is None, 0.0 if value is None else sign * float(value)

    rows = []
    for trial, summary, error in sorted(results, key=rank):
        cells = [error, *[None] * (len(measured) - 1)] if summary is None else [summary.get(c) for c in measured]
        rows.append([*trial.values.values(), *cells])
    failed = sum(error is not None for _, _, error in results)
    return SweepResult([*experiment.sweep.grid, *measured], rows, failed, run_id)
