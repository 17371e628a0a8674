"""Ray Tune's settings for a sweep section: trials or a search algorithm, and the scheduler."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray import tune

from ...config.compose import Composed, with_overrides
from ...config.errors import UserError
from ...config.schema import Experiment
from ...config.secrets import redacted
from ...config.sweep import Distribution, SweepConfig
from ...storage.sqlite import sqlite_address
from ...tasks import open_task
from .population import coordinate
from .results import SPEEDS
from .schedulers import scheduler_of
from .trials import Trial, compose_trial, point_name, rounded

STUDY_FILE = "optuna.db"
_STUDY = "sweep"


@dataclass
class Search:
    """Settings of Tune for a sweep."""

    total: int
    """Trials of the whole sweep."""
    waiting: int
    """Trials that Tune is asked for now. The others have finished before."""
    space: dict[str, Any]
    """`param_space` of Tune."""
    algorithm: Any = None
    scheduler: Any = None
    options: dict[str, Any] = field(default_factory=dict)
    """More of `TuneConfig`."""


def measuring(composed: Composed) -> Composed:
    """Return the sweep's experiment such that its trials measure themselves when they are to be compared.

    A population is compared at checkpoints, which are kept for other members to go on from.
    """
    experiment = composed.experiment
    sweep = experiment.sweep
    if sweep is None or not sweep.measures_on_the_way:
        return composed
    changes: dict[str, Any] = {"evaluation.while_training": True}
    if sweep.population is not None:
        every = sweep.population.every_images
        keys = ("sample_every_images", "checkpoint_every_images", "keep_every_images")
        changes |= {f"train.{key}": every for key in keys}
    elif sweep.asha is not None and sweep.asha.grace_images % experiment.train.sample_every_images:
        changes["train.sample_every_images"] = sweep.asha.grace_images
    batch = experiment.train.global_batch_size
    for key, value in changes.items():
        if key.startswith("train.") and value % batch:
            raise UserError(
                f"the sweep compares trials every {value} images, which are no multiple of "
                f"train.global_batch_size={batch}"
            )
    known = open_task(experiment).scores_while_training()
    if sweep.metric not in known:
        raise UserError(
            f"sweep.metric={sweep.metric} is not measured on the way; what is: {', '.join(known) or 'nothing'}"
        )
    return Composed(with_overrides(experiment, changes, experiment.name), composed.unresolved)


def check_metrics(experiment: Experiment) -> None:
    """Check that the summaries of the trials will have the metrics that rank them.

    Raises:
        UserError: they will not.
    """
    assert experiment.sweep is not None
    known = [*open_task(experiment).scores(), *SPEEDS]
    for target in experiment.sweep.targets:
        if target not in known:
            near = difflib.get_close_matches(target, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(
                f"trials are to be ranked by {target!r}, which their summaries will not have{hint}\n"
                f"  there will be: {', '.join(known)}; evaluation.ar_steps=[4] adds those of S = 4"
            )


def check_secrets(sweep: SweepConfig) -> None:
    """Check that no search stores the values of secrets: Optuna's study and a population's state hold theirs.

    Raises:
        UserError: one would.
    """
    if sweep.search != "optuna" and sweep.population is None:
        return
    for key, distribution in sweep.space.items():
        if distribution.choice is not None and redacted(distribution.choice) != distribution.choice:
            raise UserError(
                f"sweep.space.{key} has values of environment variables, and this search would store them\n"
                f"  use sweep.grid, or sweep.search=random"
            )


def search_of(
    sweep: SweepConfig, trials: list[Trial], total_images: int, concurrent: int, total: int | None = None
) -> Search:
    """Return the search among trials that are known beforehand.

    Args:
        sweep: the sweep section.
        trials: those that Tune is asked for. Of a grid, a random search or the reproduction of a table, or the
            members of a population with the values of their newest generations.
        total_images: length of each trial.
        concurrent: trials that run at once.
        total: trials of the whole sweep. Default: these.
    """
    names = [trial.name for trial in trials]
    space: dict[str, Any] = {"trial": tune.grid_search(names)}
    if sweep.population is not None:
        first = {
            trial.name: {key: coordinate(sweep, key, value) for key, value in trial.values.items()}
            for trial in trials
        }
        for key in sweep.space:
            space[key] = tune.sample_from(lambda config, key=key: first[config["trial"]][key])
    search = Search(total=total or len(trials), waiting=len(trials), space=space)
    search.scheduler = scheduler_of(sweep, total_images, all_at_once=concurrent >= len(trials))
    return search


def optuna_search(sweep: SweepConfig, folder: Path, seed: int) -> Search:
    """Return a search by Optuna, which stores the points tried in `folder`.

    Points that a killed driver left unfinished are asked for again, before new ones.
    """
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    assert sweep.num_trials is not None
    folder.mkdir(parents=True, exist_ok=True)
    storage = optuna.storages.RDBStorage(sqlite_address(folder / STUDY_FILE))
    modes = [*sweep.targets.values()]
    study = _open_study(sweep, storage)
    states = optuna.trial.TrialState
    for left in study.get_trials(states=(states.RUNNING, states.WAITING)):
        if left.state == states.RUNNING:
            study.tell(left.number, state=states.FAIL)
            study.enqueue_trial(left.params)
    finished = len(study.get_trials(states=(states.COMPLETE,)))
    several = len(modes) > 1
    algorithm = OptunaSearch(
        space={key: _optuna(distribution) for key, distribution in sweep.space.items()},
        metric=[*sweep.targets] if several else next(iter(sweep.targets)),
        mode=modes if several else modes[0],
        storage=storage,
        study_name=_STUDY,
        # The seed depends on the points seen: with the same seed, the sampler would ask for the same points.
        sampler=optuna.samplers.TPESampler(seed=seed + finished, n_startup_trials=min(10, sweep.num_trials // 2)),
    )
    waiting = max(sweep.num_trials - finished, 0)
    options = {"num_samples": waiting}
    return Search(total=sweep.num_trials, waiting=waiting, space={}, algorithm=algorithm, options=options)


def _open_study(sweep: SweepConfig, storage: Any) -> Any:
    """Return the sweep's study, which stores the definition of its search.

    Raises:
        UserError: the study belongs to another search, so that its points do not answer this one.
    """
    import optuna

    both = optuna.study.StudyDirection
    directions = [both.MINIMIZE if mode == "min" else both.MAXIMIZE for mode in sweep.targets.values()]
    study = optuna.create_study(storage=storage, study_name=_STUDY, directions=directions, load_if_exists=True)
    asked = {
        "targets": sweep.targets,
        "space": {key: law.model_dump(mode="json", exclude_none=True) for key, law in sweep.space.items()},
    }
    for name, value in asked.items():
        known = study.user_attrs.get(name)
        if known is None:
            study.set_user_attr(name, value)
        elif known != value:
            raise UserError(
                f"Optuna's study of this sweep is of other {name}: was {known}, now {value}\n"
                f"  use the old ones to continue it, or name=… to start another sweep"
            )
    return study


def studied_points(sweep: SweepConfig, folder: Path) -> list[dict[str, Any]]:
    """Return all points that the study in `folder` has asked for, unrounded. Empty without a study."""
    import optuna

    if not (folder / STUDY_FILE).is_file():
        return []
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.RDBStorage(sqlite_address(folder / STUDY_FILE))
    points = [trial.params for trial in _open_study(sweep, storage).get_trials(deepcopy=False)]
    return [point for point in points if set(point) == set(sweep.space)]


def optuna_trial(composed: Composed, sweep: SweepConfig, config: dict[str, Any]) -> Trial:
    """Return the trial of a point that Optuna has chosen. The same point is the same run."""
    values = {key: _digits(distribution, config[key]) for key, distribution in sweep.space.items()}
    return compose_trial(composed, point_name(values), values)


def _digits(distribution: Distribution, value: Any) -> Any:
    bounds = distribution.uniform or distribution.log_uniform
    return value if bounds is None else rounded(float(value), bounds)


def _optuna(distribution: Distribution) -> Any:
    from optuna import distributions

    if distribution.choice is not None:
        return distributions.CategoricalDistribution(distribution.choice)
    if distribution.integers is not None:
        return distributions.IntDistribution(*distribution.integers)
    if distribution.log_uniform is not None:
        return distributions.FloatDistribution(*distribution.log_uniform, log=True)
    assert distribution.uniform is not None
    return distributions.FloatDistribution(*distribution.uniform)
