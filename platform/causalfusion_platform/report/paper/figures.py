"""Figures of a table's report: printed values beside ours."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...config.paper_table import Metric
from ..canvas import bare, fit_axis, is_wide, name_ticks, shades, title_of
from ..figures import heat_map
from .report import PaperReport
from .words import METRIC_NAMES, arrow

# `0.9`, `γ = 0.9`, `S_train = 4`, and λ as the paper writes it, `2 → 1`.
_NUMBER = re.compile(r"(?:[^\W\d]\w*\s*=\s*)?(-?\d+(?:\.\d+)?)(?:\s*→\s*1)?")
_LARGEST_RATIO = 20.0
# Marks of one row stand apart by this share of the distance between rows, so that their bars do not overlap.
_APART_IN_LISTS, _APART_IN_CURVES = 0.16, 0.03
_MARKS = "osD^vPX*"
# Letters of a label of which two stand side by side below a panel.
_SHORT_LABEL = 14


def row_numbers(labels: Sequence[str]) -> list[float] | None:
    """Return the numbers that labels such as `γ = 0.9` name. None unless each names another one."""
    found = [_NUMBER.fullmatch(label.strip()) for label in labels]
    numbers = [float(match[1]) for match in found if match]
    return numbers if len(set(numbers)) == len(labels) > 1 else None


def is_plane(report: PaperReport) -> bool:
    """Return whether rows and columns are settings of each metric, as S_train and S_eval, and rows no curve."""
    of_metric = Counter(column.metric for column in report.table.columns)
    curve = row_numbers([row.label for row in report.rows])
    return min(*of_metric.values(), len(report.rows)) > 2 and not curve


def values_figure(report: PaperReport) -> Figure:
    """Return printed values and ours in panels of their own, as their units may differ. Bars are 95% intervals.

    The paper's panel is at the left of ours. A metric without printed values has our panel alone. Rows that are
    numbers become curves over them. Other rows are listed downwards.
    """
    numbers = row_numbers([row.label for row in report.rows])
    metrics = list(dict.fromkeys(column.metric for column in report.table.columns))
    return _curves(report, metrics, numbers) if numbers else _lists(report, metrics)


def planes_figure(report: PaperReport) -> Figure:
    """Return planes, rows × columns of each metric, the paper's if it prints any, and ours. Colour is the rank."""
    labels = [row.label for row in report.rows]
    metrics = dict.fromkeys(column.metric for column in report.table.columns)
    sides = [side for metric in metrics for ours in (False, True) if (side := _Side(report, metric, ours)).drawn]
    widths = [len(side.places) for side in sides]
    figure = Figure(figsize=(2.6 + 0.8 * sum(widths), 1.5 + 0.42 * len(labels)), layout="constrained")
    panels = figure.subplots(1, len(sides), sharey=True, squeeze=False, width_ratios=widths)[0]
    for panel, side in zip(panels, sides, strict=True):
        values = [
            [row.cells[place].ours.mean if side.ours else row.cells[place].printed for place in side.places]
            for row in report.rows
        ]
        names = [report.table.columns[place].name.rpartition(", ")[2] for place in side.places]
        heat_map(panel, values, labels, names, higher_is_better=side.mark == "↑")
        bare(panel)
        panel.tick_params(axis="x", labelsize=8)
        title_of(panel, f"{'ours, means' if side.ours else 'paper'}\n{side.unit}")
    panels[0].set_ylabel(report.table.varied)
    _headline(figure, report)
    return figure


@dataclass(frozen=True)
class _Side:
    """One panel: a metric, as printed or as measured."""

    report: PaperReport
    metric: Metric
    ours: bool

    @property
    def places(self) -> list[int]:
        """Columns of the metric."""
        return [place for place, column in enumerate(self.report.table.columns) if column.metric == self.metric]

    @property
    def drawn(self) -> bool:
        """Whether there is a panel: the paper prints a value, or the values are ours."""
        return self.ours or any(
            row.cells[place].printed is not None for row in self.report.rows for place in self.places
        )

    @property
    def mark(self) -> str:
        return arrow(self.report.table.columns[self.places[0]])

    @property
    def same_unit(self) -> bool:
        """Our values compare with the paper's, so both have one scale.

        A share of 1 and a percentage do not: one of them would be a point.
        """
        if not self.report.same_metric(self.report.table.columns[self.places[0]]):
            return False
        cells = [row.cells[place] for row in self.report.rows for place in self.places]
        printed = max((abs(cell.printed) for cell in cells if cell.printed is not None), default=0.0)
        ours = max((abs(cell.ours.mean) for cell in cells if cell.ours.mean is not None), default=0.0)
        return printed <= _LARGEST_RATIO * ours and ours <= _LARGEST_RATIO * printed

    @property
    def title(self) -> str:
        seeds = len(self.report.plan.seeds)
        if not self.ours:
            return "paper"
        return f"ours: {seeds} seeds, 95% intervals" if seeds > 1 else "ours: one seed"

    @property
    def unit(self) -> str:
        name = (
            self.report.number(self.report.table.columns[self.places[0]])
            if self.ours
            else METRIC_NAMES[self.metric]
        )
        return f"{name} {self.mark}"

    def draw(self, axes: Axes, at: Sequence[float], rows: Sequence[int], apart: float, along: str) -> None:
        """Draw a mark with its bar for each row, rows lying along x (joined by lines) or y."""
        values: list[float] = []
        for which, (place, shade) in enumerate(zip(self.places, shades(len(self.places)), strict=True)):
            cells = [self.report.rows[row].cells[place] for row in rows]
            shift = (which - (len(self.places) - 1) / 2) * apart if self.ours or along == "y" else 0
            spots = [spot + shift for spot in at]
            means = [_or_nan(cell.ours.mean if self.ours else cell.printed) for cell in cells]
            bars = [_or_nan(cell.ours.half_width) for cell in cells] if self.ours else None
            values += [mean for mean in means if mean == mean]
            kind: dict[str, Any] = {"x": spots, "y": means, "yerr": bars, "linestyle": "-"}
            if along == "y":
                kind = {"x": means, "y": spots, "xerr": bars, "linestyle": ""}
            axes.errorbar(
                **kind,
                color=shade,
                marker=_MARKS[which % len(_MARKS)],
                markersize=5,
                linewidth=1.2,
                capsize=3,
                label=self.report.table.columns[place].name,
            )
        fit_axis(axes, "y" if along == "x" else "x", values)
        bare(axes)
        title_of(axes, self.title)


def _curves(report: PaperReport, metrics: list[Metric], numbers: list[float]) -> Figure:
    lines = _lines(report, metrics)
    across = max(len(line) for line in lines)
    figure = Figure(figsize=(0.6 + 3.6 * across, 0.6 + 3.2 * len(lines)), layout="constrained")
    panels = figure.subplots(len(lines), across, sharex=True, squeeze=False)
    rows = sorted(range(len(numbers)), key=numbers.__getitem__)
    at = [numbers[row] for row in rows]
    apart = 0.0 if is_wide(at) else _APART_IN_CURVES * min(b - a for a, b in itertools.pairwise(at))
    for line, sides in zip(panels, lines, strict=True):
        for place, (side, axes) in enumerate(zip(sides, line, strict=False)):
            if place == 1 and _compares(sides):
                axes.sharey(line[0])
            side.draw(axes, at, rows, apart, "x")
            axes.set_xlabel(report.table.varied)
            axes.set_ylabel(side.unit)
            axes.grid(axis="y", color="0.92")
            if is_wide(at):
                axes.set_xscale("log")
            name_ticks(axes, "x", at, [f"{spot:g}" for spot in at])
            axes.tick_params(axis="x", labelbottom=True)
        _finish(line, sides)
    _headline(figure, report)
    return figure


def _lists(report: PaperReport, metrics: list[Metric]) -> Figure:
    rows = range(len(report.rows))
    lines = _lines(report, metrics)
    most = max(len(side.places) for line in lines for side in line)
    height = 0.8 + len(lines) * (0.9 + len(rows) * max(0.3, 0.13 * most))
    across = max(len(line) for line in lines)
    figure = Figure(figsize=(1.8 + 3.2 * across, height), layout="constrained")
    panels = figure.subplots(len(lines), across, sharey=True, squeeze=False)
    for line, sides in zip(panels, lines, strict=True):
        for place, (side, axes) in enumerate(zip(sides, line, strict=False)):
            if place == 1 and _compares(sides):
                axes.sharex(line[0])
            side.draw(axes, list(rows), list(rows), _APART_IN_LISTS, "y")
            axes.set_xlabel(side.unit)
            axes.grid(axis="y", color="0.92")
        _finish(line, sides)
        line[0].set_ylabel(report.table.varied)
        name_ticks(line[0], "y", list(rows), [row.label for row in report.rows])
    panels[0, 0].set_ylim(len(rows) - 0.5, -0.5)
    _headline(figure, report)
    return figure


def _lines(report: PaperReport, metrics: Sequence[Metric]) -> list[list[_Side]]:
    """Return the panels of each line: the paper's beside ours, then two of metrics that it does not print.

    One of each kind make up one line.
    """
    printed = [metric for metric in metrics if _Side(report, metric, False).drawn]
    lines = [[_Side(report, metric, False), _Side(report, metric, True)] for metric in printed]
    ours = [_Side(report, metric, True) for metric in metrics if metric not in printed]
    if len(printed) == len(ours) == 1:
        return [lines[0] + ours]
    return lines + [ours[first : first + 2] for first in range(0, len(ours), 2)]


def _compares(sides: Sequence[_Side]) -> bool:
    """Return whether the second panel has the first one's metric, in its unit."""
    return sides[0].metric == sides[1].metric and sides[1].same_unit


def _finish(line: Sequence[Axes], sides: Sequence[_Side]) -> None:
    """Remove the panels that nothing is drawn in, and name the columns of each metric below its last one."""
    for axes in line[len(sides) :]:
        axes.remove()
    for last in {side.metric: place for place, side in enumerate(sides)}.values():
        _legend(line[last])


def _headline(figure: Figure, report: PaperReport) -> None:
    figure.suptitle(f"{report.table.source}: {report.table.title}", x=0.01, ha="left", fontsize=11)


def _legend(axes: Axes) -> None:
    """Name the columns below the panel, if there are several."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        columns = 1 if max(map(len, labels)) > _SHORT_LABEL else 2
        axes.legend(
            handles,
            labels,
            frameon=False,
            ncols=columns,
            fontsize=8,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.16),
        )


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value
