"""Who decides about trials on the way: Ray Tune's schedulers, as a sweep section asks for them."""

from __future__ import annotations

import random
import warnings
from typing import Any

from ray import tune
from ray.tune import schedulers

from ...config.sweep import Distribution, SweepConfig
from .population import searched_bounds


def scheduler_of(sweep: SweepConfig, total_images: int, *, all_at_once: bool) -> Any:
    """Return Tune's scheduler for a sweep; None if its trials are not compared on the way.

    Args:
        sweep: the sweep section.
        total_images: length of each trial.
        all_at_once: there is room for all trials at the same time.
    """
    if sweep.asha is not None:
        return schedulers.ASHAScheduler(
            time_attr="images",
            metric=sweep.metric,
            mode=sweep.mode,
            max_t=total_images + 1,  # at its limit it would end trials before they report their end
            grace_period=sweep.asha.grace_images,
            reduction_factor=sweep.asha.reduction_factor,
        )
    population = sweep.population
    if population is None:
        return None
    common: dict[str, Any] = {
        "time_attr": "images",
        "metric": sweep.metric,
        "mode": sweep.mode,
        "perturbation_interval": population.every_images,
        "quantile_fraction": population.quantile,
    }
    if sweep.pb2 is not None:
        kind, bounds = _exploring_from_the_start(), searched_bounds(sweep)
        return _pausing_only_for_room(kind, all_at_once)(**common, hyperparam_bounds=bounds)
    return _pausing_only_for_room(schedulers.PopulationBasedTraining, all_at_once)(
        **common,
        hyperparam_mutations={key: _domain(distribution) for key, distribution in sweep.space.items()},
        resample_probability=population.resample_probability,
    )


def _exploring_from_the_start() -> type:
    """Return Ray's PB2, but for copies that would be twins of the member that they are taken from.

    Its Gaussian process knows how scores change: of a member that was measured once it knows nothing, and the copy
    keeps all values, to train the same once more. Such a copy gets values at random.
    """
    from ray.tune.schedulers.pb2 import PB2

    class Exploring(PB2):  # type: ignore[misc]
        def _get_new_config(self, trial: Any, trial_to_clone: Any) -> tuple[dict[str, Any], dict[str, Any]]:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of few points the process says at length that it is unsure
                config, operations = super()._get_new_config(trial, trial_to_clone)
            if all(config[key] == trial_to_clone.config[key] for key in self._hyperparam_bounds):
                config |= {key: random.uniform(*bounds) for key, bounds in self._hyperparam_bounds.items()}
            return config, operations

    return Exploring


def _pausing_only_for_room(scheduler: type, all_at_once: bool) -> type:
    """Return a scheduler of populations that pauses no member for another's sake, where each has room of its own.

    An exploited member starts anew, and while it does, Tune's schedulers pause every other one that reports: right
    where members take turns, otherwise a restart of the best ones for nothing.
    """
    if not all_at_once:
        return scheduler

    class AllAtOnce(scheduler):  # type: ignore[misc]
        def on_trial_result(self, *arguments: Any, **named: Any) -> str:
            decision: str = super().on_trial_result(*arguments, **named)
            return self.CONTINUE if decision == self.PAUSE else decision

    return AllAtOnce


def _domain(distribution: Distribution) -> Any:
    if distribution.choice is not None:
        return list(distribution.choice)
    if distribution.integers is not None:
        low, high = distribution.integers
        return tune.randint(low, high + 1)
    if distribution.log_uniform is not None:
        return tune.loguniform(*distribution.log_uniform)
    assert distribution.uniform is not None
    return tune.uniform(*distribution.uniform)
