"""Ray Tune's schedulers of a sweep section. They stop or change trials while these run."""

from __future__ import annotations

from typing import Any

from ray import tune
from ray.tune import schedulers

from ...config.sweep import Distribution, SweepConfig
from ...ray_private import exploring_pb2, never_pausing
from .population import searched_bounds


def scheduler_of(sweep: SweepConfig, total_images: int, *, all_at_once: bool) -> Any:
    """Return Tune's scheduler for a sweep, or None if its trials are not compared during training.

    Args:
        sweep: the sweep section.
        total_images: length of each trial.
        all_at_once: all trials fit on the cluster at the same time.
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
    adapted = never_pausing if all_at_once else lambda kind: kind
    if sweep.pb2 is not None:
        return adapted(exploring_pb2())(**common, hyperparam_bounds=searched_bounds(sweep))
    return adapted(schedulers.PopulationBasedTraining)(
        **common,
        hyperparam_mutations={key: _domain(distribution) for key, distribution in sweep.space.items()},
        resample_probability=population.resample_probability,
    )


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
