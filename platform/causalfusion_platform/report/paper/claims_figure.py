"""Figure of a table's claims: the gain of each pair with the interval that decides it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...config.paper_table import Column
from ..canvas import INK, PALE, bare, name_ticks, title_of
from .report import ClaimResult, PaperReport
from .statistics import Pair, Verdict

_COLOURS: Final[dict[Verdict, str]] = {"holds": "#1a7f5a", "fails": "#c0392b"}
_LETTERS = 52
"""In a line of a claim's text."""
_LINE_INCHES = 0.15
_APART = 0.22
"""Inches between the pairs of a claim."""
_MARGIN = 0.5
"""Room beside the means, as a share of their span: longer bars end at the edge."""


def has_claims(report: PaperReport) -> bool:
    """Return whether a pair of a claim is measured."""
    return any(pair.gain.mean is not None for claim in report.claims for pair in claim.pairs)


def claims_figure(report: PaperReport) -> Figure:
    """Return a line for each claim and a panel for each metric that decides claims. Above 0 a pair is as claimed.

    Colour is the verdict of a pair by the metric, and a pair without colour is undecided. Bars that reach the edge
    of their panel go on.
    """
    columns = {column.name: column for column in report.table.columns}
    numbers = list(dict.fromkeys(report.number(columns[claim.column]) for claim in report.claims))
    lines = [claim for claim in report.claims if not claim.by_loss]
    texts = [textwrap.wrap(f"{claim.column}: {claim.says}", _LETTERS) for claim in lines]
    heights = [
        max(len(text) * _LINE_INCHES, len(claim.pairs) * _APART) + _LINE_INCHES
        for text, claim in zip(texts, lines, strict=True)
    ]
    edges = np.cumsum(heights)
    middles = {
        claim.says: float(edge - height / 2) for claim, edge, height in zip(lines, edges, heights, strict=True)
    }
    figure = Figure(figsize=(3.9 + 2.7 * len(numbers), 1.1 + edges[-1]), layout="constrained")
    panels = figure.subplots(1, len(numbers), sharey=True, squeeze=False)[0]
    for axes, number in zip(panels, numbers, strict=True):
        shown = [claim for claim in report.claims if report.number(columns[claim.column]) == number]
        for claim in shown:
            _draw(axes, claim.pairs, middles[claim.says])
        for edge in edges[:-1]:
            axes.axhline(edge, color="0.92", linewidth=0.8, zorder=0)
        _finish(axes, [pair for claim in shown for pair in claim.pairs], number, columns[shown[0].column])
    for claim in lines:
        if len(claim.pairs) > 1:
            _name_pairs(panels[-1], report, claim, middles[claim.says])
    name_ticks(panels[0], "y", list(middles.values()), ["\n".join(text) for text in texts])
    panels[0].tick_params(axis="y", labelsize=8, length=0)
    panels[0].set_ylim(edges[-1], 0)
    figure.suptitle(f"{report.table.source}: gains that are claimed", x=0.01, ha="left", fontsize=11)
    return figure


def _draw(axes: Axes, pairs: Sequence[Pair], middle: float) -> None:
    for pair, place in zip(pairs, _places(len(pairs), middle), strict=True):
        if pair.gain.mean is None:
            continue
        colour = _COLOURS.get(pair.verdict, "0.55")
        axes.errorbar(
            pair.gain.mean,
            place,
            xerr=pair.gain.half_width,
            color=colour,
            marker="o",
            markersize=4.5,
            markerfacecolor=colour if pair.verdict in _COLOURS else "white",
            linewidth=1.3,
            capsize=2.5,
        )


def _name_pairs(axes: Axes, report: PaperReport, claim: ClaimResult, middle: float) -> None:
    """Write the rows of each pair beside the last panel."""
    beside = axes.get_yaxis_transform()
    for pair, place in zip(claim.pairs, _places(len(claim.pairs), middle), strict=True):
        better, worse = report.label(pair.better), report.label(pair.worse)
        text = better if claim.over else f"{better} over {worse}"
        axes.text(1.02, place, text, transform=beside, va="center", fontsize=7, color=INK)


def _places(pairs: int, middle: float) -> list[float]:
    return [middle + (which - (pairs - 1) / 2) * _APART for which in range(pairs)]


def _finish(axes: Axes, pairs: Sequence[Pair], number: str, column: Column) -> None:
    means = [0.0, *(pair.gain.mean for pair in pairs if pair.gain.mean is not None)]
    room = _MARGIN * (max(means) - min(means)) or 1.0
    axes.set_xlim(min(means) - room, max(means) + room)
    axes.axvline(0, color=PALE, linewidth=1.0, zorder=0)
    axes.set_xlabel(f"gain in {number}", color=INK)
    bare(axes)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    title_of(axes, "by held-out loss" if column.metric == "denoising_loss" else "by samples")
