"""The trials of a sweep: each an experiment of its own, in a folder below the sweep's."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from causalfusion import draws

from ...config.compose import Composed, with_overrides
from ...config.errors import UserError
from ...config.schema import Experiment
from ...config.secrets import redact, redacted
from ...config.sweep import Distribution, SweepConfig


@dataclass(frozen=True)
class Trial:
    """One point of the search space."""

    name: str
    """Name of its run and folder, made of the keys that differ, such as ar_decay-0.9."""
    values: dict[str, Any]
    """Dotted key → value, for tables."""
    composed: Composed
    """Its experiment."""

    @property
    def experiment(self) -> Experiment:
        """Its experiment, in a folder below the sweep's."""
        return self.composed.experiment


def sweep_of(experiment: Experiment) -> SweepConfig:
    """Return the sweep section of an experiment.

    Raises:
        UserError: it has none.
    """
    if experiment.sweep is None:
        raise UserError(
            f"experiment {experiment.name!r} has no sweep section\n"
            f"  try the shipped one: causalfusion sweep sweeps/gamma; or add one, such as\n"
            f"  'sweep.grid={{objective.ar_decay: [1.0, 0.9]}}'"
        )
    return experiment.sweep


def trials_of(composed: Composed) -> list[Trial]:
    """Return all trials that are known beforehand: of a grid, of a random search, or the members of a population.

    Raises:
        UserError: the sweep section is missing, Optuna chooses the trials, or one is not a valid experiment.
    """
    sweep = sweep_of(composed.experiment)
    if sweep.search == "optuna":
        raise UserError("the trials of a search by Optuna are not known beforehand")
    if sweep.grid:
        points = [dict(zip(sweep.grid, values, strict=True)) for values in itertools.product(*sweep.grid.values())]
        numbered = False
    else:
        points, numbered = random_points(sweep, composed.experiment.seed), True
    if sweep.seeds:
        points = [{**point, "seed": seed} for point in points for seed in sweep.seeds]
    trials = []
    for number, point in enumerate(points):
        if sweep.population:
            name = f"member-{number}"
        else:
            name = f"{number:03d}.{point_name(point)}" if numbered else point_name(point)
        trials.append(compose_trial(composed, name, point))
    names = [trial.name for trial in trials]
    if len(set(names)) != len(names):
        raise UserError(f"sweep.grid has a combination twice: {', '.join(names)}")
    return trials


def random_points(sweep: SweepConfig, seed: int) -> list[dict[str, Any]]:
    """Draw the points of a random search. Point i of a seed does not depend on the number of points."""
    assert sweep.num_trials is not None
    points = []
    for number in range(sweep.num_trials):
        generator = np.random.default_rng(draws.stream_seed(seed, "point of a sweep", number))
        points.append({key: draw(distribution, generator) for key, distribution in sweep.space.items()})
    return points


def draw(distribution: Distribution, generator: np.random.Generator) -> Any:
    """Draw one value with four significant digits, so that the name shows the trained value."""
    if distribution.choice is not None:
        return distribution.choice[int(generator.integers(len(distribution.choice)))]
    if distribution.integers is not None:
        low, high = distribution.integers
        return int(generator.integers(low, high + 1))
    if distribution.log_uniform is not None:
        low, high = np.log(distribution.log_uniform)
        return rounded(float(np.exp(generator.uniform(low, high))), distribution.log_uniform)
    assert distribution.uniform is not None
    return rounded(float(generator.uniform(*distribution.uniform)), distribution.uniform)


def rounded(value: float, bounds: tuple[float, float]) -> float:
    """Round to four significant digits, inside the bounds."""
    return min(max(float(f"{value:.4g}"), bounds[0]), bounds[1])


def point_name(values: Mapping[str, Any]) -> str:
    """Return the name of a point: the last part of each key with its value, such as `ar_decay-0.9.seed-1`."""
    parts = [f"{key.rsplit('.', 1)[-1]}-{redact(str(value))}" for key, value in values.items()]
    return re.sub(r"[^A-Za-z0-9._-]+", "_", ".".join(parts)).strip("_.-")


def compose_trial(base: Composed, name: str, values: Mapping[str, Any], sweep: Experiment | None = None) -> Trial:
    """Return a trial: an experiment with other values, in a folder below the sweep's, and no sweep of its own.

    Args:
        base: the experiment.
        name: of the trial.
        values: dotted key → value.
        sweep: the sweep that it belongs to. Default: the experiment itself is one.

    Raises:
        UserError: a value is not allowed.
    """
    sweep = sweep or base.experiment
    place = {"name": name, "runs": str(sweep.run_dir), "tracking.uri": sweep.tracking_uri}
    changed = with_overrides(base.experiment, {**values, **place}, f"{sweep.name}/{name}")
    # The rest of the tree may hold interpolations, which are shown as written.
    unresolved = _without(base.unresolved, ["name", "runs", "sweep", *values])
    return Trial(name, redacted(values), Composed(changed.model_copy(update={"sweep": None}), unresolved))


def _without(tree: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    tree = copy.deepcopy(tree)
    for key in keys:
        *path, last = key.split(".")
        node: Any = tree
        for part in path:
            node = node.get(part, {})
        node.pop(last, None)
    return tree
