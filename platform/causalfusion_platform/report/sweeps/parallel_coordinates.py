"""Parallel coordinates: each trial of a sweep as a line from its metric through its values of the swept keys."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import rc_context
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patheffects import Normal, Stroke
from scipy.stats import rankdata

from ..canvas import INK, is_wide, title_of
from ..numbers import is_number
from ..tables import plain
from .records import Mode, TrialRecord, best_of, has_result, last_part, metric_of

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution

_ABSENT = "–"


def parallel_coordinates_figure(
    trials: Sequence[TrialRecord], keys: Sequence[str], metric: str, mode: Mode, *, title: str
) -> Figure:
    """Return a line for each finished trial through its metric and its values of `keys`, drawn by Optuna.

    Lines are the darker the better their rank, and the best trial's is thick.

    Raises:
        ValueError: there are fewer than two finished trials, or no keys.
    """
    finished = [trial for trial in trials if has_result(trial, metric)]
    if len(finished) < 2 or not keys:
        raise ValueError("parallel coordinates need two finished trials and a key")
    from matplotlib import pyplot
    from optuna.visualization.matplotlib import plot_parallel_coordinate

    size = (1.4 + 1.5 * (len(keys) + 1), 4.4)
    with warnings.catch_warnings(), rc_context({"figure.constrained_layout.use": True, "figure.figsize": size}):
        warnings.simplefilter("ignore")  # Optuna calls its figures experimental
        axes = plot_parallel_coordinate(study_of(finished, keys, metric, mode))
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    pyplot.close(figure)
    (lines,) = (found for found in axes.collections if isinstance(found, LineCollection))
    _rank(lines, mode)
    names = [f"{metric} {'↑' if mode == 'max' else '↓'}", *map(last_part, sorted(keys))]
    axes.set_xticks(range(len(names)), names, rotation=0, fontsize=9)
    outline = [Stroke(linewidth=3, foreground="white"), Normal()]
    for one in figure.axes:
        one.tick_params(axis="y", which="both", colors=INK, labelsize=8)
        for label in one.get_yticklabels(which="both"):
            label.set_path_effects(outline)
    axes.set_title("")
    best = best_of(finished, metric, mode)
    assert best is not None
    left = f"; {len(trials) - len(finished)} not finished are left out" if len(finished) < len(trials) else ""
    title_of(axes, f"{title}\n{len(finished)} trials, the darker the better; thick: {best.name}{left}")
    return figure


def study_of(trials: Sequence[TrialRecord], keys: Sequence[str], metric: str, mode: Mode) -> Study:
    """Return trials that have the metric as a study in memory.

    A key with a value that is not a number becomes categories.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="minimize" if mode == "min" else "maximize")
    values = {key: [trial.values.get(key, _ABSENT) for trial in trials] for key in keys}
    kinds = {key: _distribution(column) for key, column in values.items()}
    for place, trial in enumerate(trials):
        params = {
            key: column[place]
            if isinstance(kinds[key], optuna.distributions.FloatDistribution)
            else plain(column[place])
            for key, column in values.items()
        }
        study.add_trial(optuna.create_trial(value=metric_of(trial, metric), params=params, distributions=kinds))
    return study


def _distribution(values: Sequence[Any]) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if all(map(is_number, values)):
        return FloatDistribution(min(values), max(values), log=is_wide(values))
    return CategoricalDistribution(list(dict.fromkeys(map(plain, values))))


def _rank(lines: LineCollection, mode: Mode) -> None:
    """Colour lines by the rank of the metric, at which they begin, and make the best one thick."""
    ends = np.array([segment[0][1] for segment in lines.get_segments()])
    ranks = rankdata(ends if mode == "min" else -ends) - 1
    if lines.colorbar is not None:
        lines.colorbar.remove()
    widths = np.where(ranks == ranks.min(), 3.5, 1.2)
    lines.set(cmap="viridis", array=ranks, clim=(0, 1.1 * max(ranks.max(), 1)), linewidth=widths)
