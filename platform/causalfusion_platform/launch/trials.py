"""The trials of a sweep: every combination of its grid, each an experiment of its own."""

from __future__ import annotations

import copy
import itertools
import re
from dataclasses import dataclass
from typing import Any

from ..config.compose import Composed, with_overrides
from ..config.errors import UserError
from ..config.schema import Experiment


@dataclass(frozen=True)
class Trial:
    """One point of the search space."""

    name: str
    """What differs, such as ar_decay-0.9; the name of its run and folder."""
    values: dict[str, Any]
    """Dotted key → value."""


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


def compose_trial(composed: Composed, trial: Trial) -> Composed:
    """Return the experiment of one trial with its tree as written, less what the trial sets itself.

    Raises:
        UserError: a value is not allowed.
    """
    # The rest may hold interpolations, which are shown as written.
    tree = copy.deepcopy(composed.unresolved)
    for key in ("name", "runs", "sweep", *trial.values):
        *path, last = key.split(".")
        node = tree
        for part in path:
            node = node.get(part, {})
        node.pop(last, None)
    return Composed(trial_experiment(composed.experiment, trial), tree)
