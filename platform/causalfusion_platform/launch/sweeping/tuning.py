"""Run the trials of a sweep with Ray Tune, each in a process of its own with its own workers."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from typing import Any

from ray import tune

from ...config.errors import UserError
from ...config.secrets import redact
from ...report.sweeps.live import SweepDisplay
from ...storage.fence import Fence, Superseded
from ...storage.run_layout import RunPaths
from ..cluster.growth import training_demand, wait_for_room
from ..cluster.resources import TRIAL_CPUS, trials_that_fit
from ..runs.lock import in_turn
from ..runs.signals import StopRequest
from .job import SweepJob
from .population import member_of, member_trial
from .progress import ProgressThread, TrialProgress
from .results import TrialEnd
from .run_trial import run_trial
from .search import Search, optuna_trial

_FENCE_SECONDS = 1.0
"""Interval of the question if another launch has taken the sweep over."""


def concurrent_trials(job: SweepJob) -> int:
    """Return the number of trials at once: as many as fit on the cluster and the sweep allows.

    A cluster that can grow is asked for room for `sweep.max_concurrent` trials. Where that is null it is asked for
    one, so that a large search does not take the whole cluster unasked.

    Raises:
        UserError: not even one fits.
    """
    experiments = [job.experiment, *(trial.experiment for trial in job.trials)]
    wanted = job.sweep.max_concurrent or 1
    demands = [training_demand(experiment) for experiment in experiments]
    largest = max(
        demands, key=lambda demand: (sum(part.gpus for part in demand), sum(part.cpus for part in demand))
    )
    fit = wait_for_room(
        lambda have: trials_that_fit(experiments, have),
        largest * wanted,
        job.experiment.supervision.resource_seconds,
        enough=lambda fit: fit >= wanted,
    )
    return min(fit, job.sweep.max_concurrent or fit)


def fit(
    job: SweepJob,
    search: Search,
    parent: str,
    concurrent: int,
    stop: StopRequest,
    display: SweepDisplay,
    finished: Sequence[str],
    fence: Fence,
) -> list[TrialEnd]:
    """Run the trials of a search with Ray Tune, and return the end of each.

    Args:
        job: the sweep.
        search: settings of Tune.
        parent: the sweep's run in MLflow.
        concurrent: trials that run at once.
        stop: requests to stop.
        display: shows the progress of trials.
        finished: trials that have finished in earlier launches.
        fence: of this launch of the sweep. Trials of an older launch would take those of the newer one over.

    Raises:
        Superseded: another launch has taken the sweep over.
    """
    experiment, sweep, composed, checked = job.experiment, job.sweep, job.composed, job.checked
    by_name = {trial.name: trial for trial in job.trials}
    optuna = job.chosen_on_the_way

    def trial_process(config: dict[str, Any]) -> None:
        fence.check()
        if optuna:
            trial = optuna_trial(composed, sweep, config)
            # In a small space the same point may be chosen twice at once: the run of the second exists already.
            in_turn(trial.experiment.run_dir, lambda: run_trial(trial, sweep, parent, checked))
            return
        trial = member_trial(composed, sweep, config) if sweep.population is not None else by_name[config["trial"]]
        run_trial(trial, sweep, parent, checked)

    metric = next(iter(sweep.targets))

    def name_of(config: dict[str, Any]) -> str | None:
        if not optuna:
            return config.get("trial")
        try:
            return optuna_trial(composed, sweep, config).name
        except UserError:  # the trial itself will say so
            return None

    total = experiment.train.total_images
    totals = {name: trial.experiment.train.total_images for name, trial in by_name.items()}
    progress = TrialProgress([*by_name], job.run, total, metric, finished, name_of, totals)
    # Tune prints its own set-up even at verbosity 0, unless told to use its older reporter.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Ctrl-C is a request to stop, as SIGTERM is
    os.environ["TUNE_PRINT_ALL_TRIAL_ERRORS"] = "0"  # the display and the table say why a trial failed
    tuner = tune.Tuner(
        tune.with_resources(trial_process, {"CPU": TRIAL_CPUS}),
        param_space=search.space,
        tune_config=tune.TuneConfig(
            max_concurrent_trials=concurrent,
            search_alg=search.algorithm,
            scheduler=search.scheduler,
            **search.options,
        ),
        run_config=tune.RunConfig(
            # Tune's own state is new at every launch. The run folder tells if a trial has finished.
            name=f"launch-{time.time_ns()}",
            storage_path=str(RunPaths(experiment.run_dir).tune),
            callbacks=[progress],
            stop=_Ends(stop, experiment.train.total_images if sweep.population is not None else None, fence),
            verbose=0,
        ),
    )
    with ProgressThread(progress, display):
        grid = tuner.fit()
    fence.check()
    if len(grid) != search.waiting and not stop.reason:
        raise RuntimeError(f"Ray Tune returned {len(grid)} results for {search.waiting} trials")
    return ends_of(job, grid, stopped=stop.reason is not None)


class _Ends(tune.Stopper):  # type: ignore[misc]
    """Stopper that ends all trials on request, and members of a population at their last image.

    It also ends all once another launch has taken the sweep over.
    The end of a member is not a comparison. Tune asks the scheduler about every result that does not end a trial.
    """

    def __init__(self, stop: StopRequest, images: int | None, fence: Fence) -> None:
        self.stop, self.images, self.fence = stop, images, fence
        self.superseded, self.checked = False, 0.0

    def __call__(self, _: str, result: dict[str, Any]) -> bool:
        return self.images is not None and result.get("images", 0) >= self.images

    def stop_all(self) -> bool:
        if not self.superseded and time.monotonic() - self.checked > _FENCE_SECONDS:
            self.checked = time.monotonic()
            try:
                self.fence.check()
            except Superseded:
                self.superseded = True
            except OSError:  # not known
                return self.stop.reason is not None
        return self.superseded or self.stop.reason is not None


def ends_of(job: SweepJob, results: Iterable[Any], *, stopped: bool) -> list[TrialEnd]:
    """Return the ends of trials. A stop may come before a trial has begun, whose configuration is then empty."""
    return [_end_of(job, result, stopped=stopped) for result in results if result.config or not stopped]


def _end_of(job: SweepJob, result: Any, *, stopped: bool) -> TrialEnd:
    config, metrics = result.config or {}, result.metrics or {}
    if job.chosen_on_the_way:
        trial = optuna_trial(job.composed, job.sweep, config)
        name, values = trial.name, trial.values
    elif job.sweep.population is not None:
        # The configuration is of the last generation, and its `trial` is the member it was copied from.
        run = metrics.get("trial") or config["trial"]
        name = run.partition(".g")[0]
        member = member_of(job.experiment, name)
        values = member.values if member else {}
    else:
        name = config["trial"]
        values = next(trial.values for trial in job.trials if trial.name == name)
    if result.error is not None:
        return TrialEnd(name, values, error=redact(str(result.error).strip().splitlines()[-1]))
    if "summary" in metrics:
        return TrialEnd.finished(name, values, metrics["summary"])
    return TrialEnd.unfinished(name, values, job.run_dir(name), stopped=stopped)
