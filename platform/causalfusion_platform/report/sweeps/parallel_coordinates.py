"""Parallel coordinates: each trial of a sweep as a line through its values, the metric at the right."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import Normal, Stroke
from matplotlib.ticker import MaxNLocator

from ..canvas import INK, PALE, canvas, is_wide, title_of
from ..numbers import is_number
from .records import Mode, TrialRecord, best_of, has_result, last_part, metric_of, ranked

# Up to so many different numbers are the marks of their axis; of more, round numbers are.
_FEW = 6
# Marks closer than this share of the axis would overlap.
_CLOSE = 0.045
_ABSENT = "–"


@dataclass(frozen=True)
class Scale:
    """One vertical axis: where values lie on it, from 0 at the bottom to 1."""

    places: dict[str, float]
    marks: tuple[tuple[float, str], ...]
    """(place, text)."""
    logarithmic: bool = False

    def place(self, value: Any) -> float:
        """Return where one of the values that the scale was made for lies."""
        return self.places[_key(value)]


def scale_of(values: Sequence[Any]) -> Scale:
    """Return an axis for values: numbers by size, logarithmic if they span more than a factor of 20.

    If one value is no number, each has a mark of its own: numbers by size, then the others as they come.
    """
    if not all(map(is_number, values)):
        return _categories(values)
    numbers = sorted({float(value) for value in values})
    logarithmic = is_wide(numbers)
    low, high = _along(numbers[0], logarithmic), _along(numbers[-1], logarithmic)

    def place(value: float) -> float:
        return (_along(value, logarithmic) - low) / (high - low) if high > low else 0.5

    marks: list[tuple[float, str]] = []
    few = len(numbers) <= _FEW
    for number in numbers if few else _round_numbers(numbers[0], numbers[-1], logarithmic):
        if not marks or place(number) - marks[-1][0] >= _CLOSE:
            marks.append((place(number), f"{number:.{4 if few else 3}g}"))
    return Scale({_key(value): place(float(value)) for value in values}, tuple(marks), logarithmic)


def parallel_coordinates_figure(
    trials: Sequence[TrialRecord], keys: Sequence[str], metric: str, mode: Mode, *, title: str
) -> Figure:
    """Return a line for each trial through its values of `keys` and its metric.

    Lines are the darker the better their rank, and the best trial's is thick. Trials that did not finish are gray
    and dashed; without the metric they end before its axis.

    Raises:
        ValueError: there are no trials or no keys.
    """
    if not trials or not keys:
        raise ValueError("parallel coordinates need trials and keys")
    scales = [scale_of([trial.values.get(key, _ABSENT) for trial in trials]) for key in keys]
    names = [last_part(key) for key in keys]
    measured = [value for trial in trials if (value := metric_of(trial, metric)) is not None]
    if measured:
        scales.append(scale_of(measured))
        names.append(f"{metric} {'↑' if mode == 'max' else '↓'}")
    figure, axes = canvas(1.4 + 1.5 * len(scales), 4.4)
    best = best_of(trials, metric, mode)
    ranks = {
        id(trial): rank for rank, trial in enumerate(ranked(trials, metric, mode)) if has_result(trial, metric)
    }
    for trial in trials:
        line = [scale.place(trial.values.get(key, _ABSENT)) for scale, key in zip(scales, keys, strict=False)]
        value = metric_of(trial, metric)
        line += [] if value is None else [scales[-1].place(value)]
        if id(trial) in ranks:
            share = ranks[id(trial)] / max(len(ranks) - 1, 1)
            colour = colormaps["viridis"](0.9 * share)
            look: dict[str, Any] = {"color": colour, "linewidth": 1.2, "zorder": 3 - share, "alpha": 0.8}
        else:
            look = {"color": PALE, "linewidth": 1.0, "zorder": 1, "linestyle": "--"}
        if trial is best:
            look |= {"linewidth": 3.5, "zorder": 4, "alpha": 1}
        axes.plot(range(len(line)), line, **look)
    for at, (scale, name) in enumerate(zip(scales, names, strict=True)):
        _draw_axis(axes, at, scale, name)
    axes.set(xlim=(-0.6, len(scales) - 0.7), ylim=(-0.13, 1.04))
    axes.set_axis_off()
    title_of(axes, f"{title}\n{_legend(best, len(trials), len(ranks))}")
    return figure


def _legend(best: TrialRecord | None, all_of: int, compared: int) -> str:
    thick = f"; thick: {best.name}" if best else ""
    gray = f"; gray: {all_of - compared} not finished" if compared < all_of else ""
    return f"{all_of} trials, the darker the better{thick}{gray}"


def _draw_axis(axes: Axes, at: int, scale: Scale, name: str) -> None:
    axes.plot([at, at], [0, 1], color=INK, linewidth=1, zorder=5)
    outline = [Stroke(linewidth=3, foreground="white"), Normal()]
    for place, text in scale.marks:
        axes.plot([at - 0.02, at], [place, place], color=INK, linewidth=1, zorder=5)
        axes.text(
            at - 0.05, place, text, ha="right", va="center", fontsize=8, zorder=6, path_effects=outline
        )  # fmt: skip
    axes.text(at, -0.07, name + (" (log)" if scale.logarithmic else ""), ha="center", va="top", fontsize=9)


def _categories(values: Sequence[Any]) -> Scale:
    different = {_key(value): value for value in values}
    numbers = sorted((key for key, value in different.items() if is_number(value)), key=float)
    keys = [*numbers, *(key for key in different if key not in numbers)]
    places = {key: index / max(len(keys) - 1, 1) if len(keys) > 1 else 0.5 for index, key in enumerate(keys)}
    return Scale(places, tuple((places[key], _text(different[key])) for key in keys))


def _along(number: float, logarithmic: bool) -> float:
    return math.log10(number) if logarithmic else number


def _round_numbers(low: float, high: float, logarithmic: bool) -> list[float]:
    """Return the ends and round numbers between them."""
    if logarithmic:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        steps = (1, 2, 5) if len(powers) <= 3 else (1,)
        between = [step * 10.0**power for power in powers for step in steps]
    else:
        between = [float(number) for number in MaxNLocator(5).tick_values(low, high)]
    return [low, *(number for number in between if low < number < high), high]


def _key(value: Any) -> str:
    return repr(float(value)) if is_number(value) else _text(value)


def _text(value: Any) -> str:
    if is_number(value):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)
