"""Parts of all figures: the empty canvas, shades, axes that fit their numbers, and writing PNG files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FormatStrFormatter, LogLocator, NullLocator

DPI = 130
INK = "0.25"
PALE = "0.75"
# Numbers that span more than this are drawn on a logarithmic axis.
_WIDE_SPAN = 20
# … and beyond this, only powers of ten have room for their names.
_DECADES = 50

Shade = tuple[float, ...]


def canvas(width: float = 6.0, height: float = 3.8) -> tuple[Figure, Axes]:
    """Return a figure of so many inches, and its axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    bare(axes)
    return figure, axes


def bare(axes: Axes) -> None:
    """Take the frame's upper and right edge away."""
    axes.spines[["top", "right"]].set_visible(False)


def shades(count: int) -> list[Shade]:
    """Return shades from dark to light, none so light that it would be lost on white."""
    return [colormaps["viridis"](0.85 * index / max(count - 1, 1)) for index in range(count)]


def title_of(axes: Axes, text: str) -> None:
    """Write a title above the axes, at their left."""
    axes.set_title(text, loc="left", fontsize=10)


def is_wide(values: Iterable[float]) -> bool:
    """Return whether numbers are all positive and span so much that their axis should be logarithmic."""
    some = list(values)
    return bool(some) and min(some) > 0 and max(some) > _WIDE_SPAN * min(some)


def fit_axis(axes: Axes, axis: str, values: Iterable[float]) -> None:
    """Make the x or y axis logarithmic where its numbers need that, with ticks at 1, 2, 5, 10 … or 1, 10, 100 …"""
    some = list(values)
    if not is_wide(some):
        return
    axes.set(**{f"{axis}scale": "log"})
    which = axes.xaxis if axis == "x" else axes.yaxis
    which.set_major_locator(LogLocator(subs=(1, 2, 5) if max(some) < _DECADES * min(some) else (1,)))
    which.set_major_formatter(FormatStrFormatter("%g"))
    which.set_minor_locator(NullLocator())


def name_ticks(axes: Axes, axis: str, places: Sequence[float], names: Sequence[str]) -> None:
    """Put names at places along the x or y axis, and no other ticks."""
    which = axes.xaxis if axis == "x" else axes.yaxis
    which.set_major_locator(FixedLocator(list(places)))
    which.set_minor_locator(NullLocator())
    which.set_ticklabels(list(names))


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as a PNG file, its folder too, and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)
    return path
