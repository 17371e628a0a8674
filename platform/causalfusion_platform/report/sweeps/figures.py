"""Figures of a sweep: the metric over each key, its history, and the trade-off of two metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..canvas import PALE, bare, canvas, fit_axis, name_ticks, shades, title_of
from ..numbers import is_number
from ..tables import plain
from .records import Mode, TrialRecord, best_of, has_result, last_part, metric_of

_DARK, _BEST = shades(3)[0], "#d1495b"
# With more points on the front their names would lie on each other.
_NAMED = 8
_MOST_ACROSS = 4
_FEW = 8


def slices_figure(
    trials: Sequence[TrialRecord], keys: Sequence[str], metric: str, mode: Mode, *, title: str
) -> Figure:
    """Return a panel for each key: the metric of finished trials over the key's value, their mean as a line.

    A sweep over γ or λ alone is their curve. The spread at one value is that of the other keys, seeds included.

    Raises:
        ValueError: `keys` is empty.
    """
    if not keys:
        raise ValueError("a figure of slices needs keys")
    done = [trial for trial in trials if has_result(trial, metric)]
    across = min(len(keys), _MOST_ACROSS)
    down = -(-len(keys) // across)
    figure = Figure(figsize=(max(5.0, 1.0 + 2.9 * across), 0.9 + 2.7 * down), layout="constrained")
    panels = list(figure.subplots(down, across, sharey=True, squeeze=False).ravel())
    for panel, key in zip(panels, keys, strict=False):
        _slice(panel, done, key, metric, best_of(trials, metric, mode))
    for panel in panels[len(keys) :]:
        panel.set_axis_off()
    fit_axis(panels[0], "y", _values(done, metric))
    for panel in panels[::across]:
        panel.set_ylabel(_named(metric, mode))
    figure.suptitle(f"{title}: trials, their mean (line), the best (red)", x=0.01, ha="left", fontsize=10)
    return figure


def history_figure(trials: Sequence[TrialRecord], metric: str, mode: Mode, *, title: str) -> Figure:
    """Return the metric of each trial and the best so far. Trials are given in the order of their ends."""
    figure, axes = canvas()
    best: list[float] = []
    leader: TrialRecord | None = None
    for number, trial in enumerate(trials, start=1):
        value = metric_of(trial, metric)
        if value is None:
            axes.axvline(number, color=PALE, linewidth=1, linestyle="--", zorder=0)
        else:
            axes.plot(number, value, "o", color=_DARK if has_result(trial, metric) else PALE, markersize=4)
        leader = best_of([trial] if leader is None else [leader, trial], metric, mode)
        best.append(float("nan") if leader is None else _value(leader, metric))
    axes.step(range(1, len(best) + 1), best, where="post", color=_BEST, label="best so far")
    axes.legend(frameon=False)
    fit_axis(axes, "y", _values(trials, metric))
    axes.set(xlabel="trial, by its end", ylabel=_named(metric, mode), xlim=(0.5, len(trials) + 0.5))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    pale = any(metric_of(trial, metric) is not None and trial.status != "finished" for trial in trials)
    dashed = len(_values(trials, metric)) < len(trials)
    notes = ["pale: not trained to the end"] * pale + ["dashed: no result"] * dashed
    title_of(axes, "\n".join([title, *(["; ".join(notes)] if notes else [])]))
    return figure


def pareto_figure(
    trials: Sequence[TrialRecord], first: tuple[str, Mode], second: tuple[str, Mode], *, title: str
) -> Figure:
    """Return finished trials by two metrics (across, up), with the front of those that no other trial beats."""
    figure, axes = canvas(6.4, 4.4)
    done = [trial for trial in trials if has_result(trial, first[0]) and has_result(trial, second[0])]
    points = [(_value(trial, first[0]), _value(trial, second[0])) for trial in done]
    front = sorted(pareto_front(points, (first[1], second[1])), key=points.__getitem__)
    for index, point in enumerate(points):
        axes.plot(*point, "o", color=_BEST if index in front else PALE, markersize=6 if index in front else 4)
    if front:
        # Between two points of the front, the one that still meets the limit on the x axis counts.
        where: Literal["post", "pre"] = "post" if first[1] == "min" else "pre"
        axes.step(*zip(*(points[index] for index in front), strict=True), where=where, color=_BEST, linewidth=1)
    if len(front) <= _NAMED:
        for index in front:
            axes.annotate(done[index].name, points[index], xytext=(5, 5), textcoords="offset points", fontsize=7)
    for axis, (metric, mode), place in (("x", first, 0), ("y", second, 1)):
        fit_axis(axes, axis, [point[place] for point in points])
        axes.set(**{f"{axis}label": _named(metric, mode)})
    title_of(axes, f"{title}\nred: {len(front)} of {len(points)} trials, which no other beats in both")
    return figure


def pareto_front(points: Sequence[tuple[float, float]], modes: tuple[Mode, Mode]) -> list[int]:
    """Return the places of points that no other beats: is at least as good in both and better in one."""
    signs = [1 if mode == "min" else -1 for mode in modes]
    costs = [(signs[0] * x, signs[1] * y) for x, y in points]
    return [
        place
        for place, (x, y) in enumerate(costs)
        if not any(a <= x and b <= y and (a < x or b < y) for a, b in costs)
    ]


def _slice(axes: Axes, done: Sequence[TrialRecord], key: str, metric: str, best: TrialRecord | None) -> None:
    values = [trial.values.get(key) for trial in done]
    spots = _spots(axes, values)
    groups: dict[float, list[float]] = {}
    for trial, spot in zip(done, spots, strict=True):
        groups.setdefault(spot, []).append(_value(trial, metric))
        axes.plot(spot, _value(trial, metric), "o", color=_DARK, markersize=4, alpha=0.6)
        if trial is best:
            axes.plot(spot, _value(trial, metric), "o", color=_BEST, markersize=7, zorder=5)
    if 0 < len(groups) <= _FEW:
        means = sorted((spot, sum(found) / len(found)) for spot, found in groups.items())
        joined = all(map(is_number, values))
        look = {"linewidth": 1.2} if joined else {"linestyle": "", "marker": "_", "markersize": 18}
        axes.plot(*zip(*means, strict=True), color=_DARK, **look)
    bare(axes)
    axes.set_xlabel(last_part(key))


def _spots(axes: Axes, values: Sequence[Any]) -> list[float]:
    """Return where values lie on the x axis, and fit the axis to them: categories lie side by side."""
    if all(map(is_number, values)):
        numbers = [float(value) for value in values]
        fit_axis(axes, "x", numbers)
        if len(set(numbers)) <= _FEW:
            name_ticks(axes, "x", sorted(set(numbers)), [f"{number:.10g}" for number in sorted(set(numbers))])
        return numbers
    numbers = sorted({float(value) for value in values if is_number(value)})
    texts = [f"{value:.10g}" if is_number(value) else plain(value) for value in values]
    order = [*(f"{number:.10g}" for number in numbers), *texts]
    names = list(dict.fromkeys(order))
    name_ticks(axes, "x", range(len(names)), names)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.tick_params(axis="x", labelrotation=30 if sum(map(len, names)) > 20 else 0)
    return [names.index(text) for text in texts]


def _value(trial: TrialRecord, metric: str) -> float:
    value = metric_of(trial, metric)
    assert value is not None
    return value


def _values(trials: Sequence[TrialRecord], metric: str) -> list[float]:
    return [value for trial in trials if (value := metric_of(trial, metric)) is not None]


def _named(metric: str, mode: Mode) -> str:
    return f"{metric} {'↑' if mode == 'max' else '↓'}"
