"""Tables and the picture of probes: accuracy over layers and diffusion times, beside random initialization."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.table import Table

from ..evaluation.probe.scores import ProbeScore
from .canvas import INK, Shade, bare, shades
from .tables import terminal_table

_TIMES_BESIDE = 4
"""Diffusion times of one table: with random initialization beside each, they fit 80 columns."""
_PANEL_INCHES = 5.0
_NAMES = {"linear": "linear classifier", "knn": "nearest neighbours"}


def probe_tables(scores: Sequence[ProbeScore]) -> list[Table]:
    """Return tables of 80 columns: layers down, times across. Each time has random initialization beside it."""
    found = {score.place: score for score in scores}
    layers = sorted({score.layer for score in scores})
    times = sorted({score.t for score in scores})
    tables = []
    for kind in dict.fromkeys(score.kind for score in scores):
        for start in range(0, len(times), _TIMES_BESIDE):
            some = times[start : start + _TIMES_BESIDE]
            columns = [name for t in some for name in (f"t={t}", "random")]
            rows = [
                [layer, *(_cell(found.get((kind, t, layer, random))) for t in some for random in (False, True))]
                for layer in layers
            ]
            tables.append(terminal_table(f"accuracy, {_NAMES.get(kind, kind)}", ["layer", *columns], rows))
    return tables


def _cell(score: ProbeScore | None) -> str:
    return "–" if score is None else f"{score.accuracy:.3f}"


def probe_figure(scores: Sequence[ProbeScore], *, title: str, about: str) -> Figure:
    """Draw accuracy over layers: a panel for each kind, a line for each time, dashed at random initialization.

    Bands are 95% intervals over the validation rows.
    """
    kinds = list(dict.fromkeys(score.kind for score in scores))
    times = sorted({score.t for score in scores})
    figure = Figure(figsize=(_PANEL_INCHES * len(kinds) + 0.6, 4.2), layout="constrained")
    panels = figure.subplots(1, len(kinds), squeeze=False, sharey=True)[0]
    for place, (axes, kind) in enumerate(zip(panels, kinds, strict=True)):
        bare(axes)
        for t, shade in zip(times, shades(len(times)), strict=True):
            for random in (False, True):
                own = [score for score in scores if (score.kind, score.t, score.random) == (kind, t, random)]
                _line(axes, sorted(own, key=lambda score: score.layer), shade, dashed=random)
        axes.set(xlabel="layer (0: embedding)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_title(_NAMES.get(kind, kind), loc="left", fontsize=9, color=INK)
        if place == 0:
            axes.set(ylabel="accuracy on validation rows")
    keys = []
    for t, shade in zip(times, shades(len(times)), strict=True):
        keys += panels[0].plot([], [], "o-", color=shade, markersize=3, label="clean" if t == 0 else f"t = {t}")
    keys += panels[0].plot([], [], "--", color=INK, label="random initialization")
    figure.legend(handles=keys, loc="outside lower center", ncols=len(keys), frameon=False, fontsize=9)
    figure.suptitle(f"{title}\n{about}", x=0.02, ha="left", fontsize=10)
    return figure


def _line(axes: Axes, scores: Sequence[ProbeScore], shade: Shade, *, dashed: bool) -> None:
    layers = [score.layer for score in scores]
    values = [score.accuracy for score in scores]
    axes.plot(layers, values, "--" if dashed else "o-", color=shade, markersize=3)
    low, high = [score.low for score in scores], [score.high for score in scores]
    axes.fill_between(layers, low, high, color=shade, alpha=0.08 if dashed else 0.15, linewidth=0)
