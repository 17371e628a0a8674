"""Training loss over images seen, for several settings and seeds (Figure 4a)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from numpy.typing import NDArray

from ..canvas import canvas, fit_axis, shades, title_of

Curve = tuple[Sequence[float], Sequence[float]]
"""Images seen, and the loss there."""
_Line = NDArray[np.float64]

_POINTS = 400
_WINDOW = 0.04
# The fall before would press all that comes after into a line; it is cut off above.
_START = 0.3


def training_loss_figure(curves: Mapping[str, Sequence[Curve]], *, title: str, window: float = _WINDOW) -> Figure:
    """Return the loss over images: the mean over seeds as a line, from the lowest to the highest seed as a band.

    Args:
        curves: label, such as `S = 4` → the curve of each seed, as far as there are any. Cadences may differ.
        title: what was trained.
        window: share of the longest run that each loss is averaged over first.

    Raises:
        ValueError: there is not one curve with points.
    """
    found = {label: [curve for curve in seeds if len(curve[0])] for label, seeds in curves.items()}
    found = {label: seeds for label, seeds in found.items() if seeds}
    if not found:
        raise ValueError("there are no losses to draw")
    longest = max(max(images) for seeds in found.values() for images, _ in seeds)
    figure, axes = canvas(7.0, 4.2)
    late = []
    for (label, seeds), shade in zip(found.items(), shades(len(found)), strict=True):
        at, losses = _together([(images, smoothed(images, loss, window * longest)) for images, loss in seeds])
        mean = losses.mean(axis=0)
        axes.plot(at, mean, color=shade, linewidth=1.6, label=label)
        if len(seeds) > 1:
            axes.fill_between(at, losses.min(axis=0), losses.max(axis=0), color=shade, alpha=0.2, linewidth=0)
        late.append(losses[:, at >= min(_START * longest, at[-1])])
    lows, highs = [float(part.min()) for part in late], [float(part.max()) for part in late]
    fit_axis(axes, "y", [*lows, *highs])
    room = 0.05 * (max(highs) - min(lows)) or 0.05 * abs(max(highs))
    bottom = 0.95 * min(lows) if axes.get_yscale() == "log" else min(lows) - room
    axes.set(xlabel="images seen", ylabel="training loss", ylim=(bottom, max(highs) + room), xlim=(0, longest))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    seeds_drawn = max(len(seeds) for seeds in found.values())
    band = f"; mean and range of {seeds_drawn} seeds" if seeds_drawn > 1 else ""
    title_of(axes, f"{title}\naverages over {window * longest:,.0f} images{band}")
    axes.legend(frameon=False)
    return figure


def smoothed(images: Sequence[float], loss: Sequence[float], width: float) -> _Line:
    """Return the mean loss within a window of so many images about each point.

    Losses that are not finite are left out. A window without any finite loss is NaN.
    """
    at, values = np.asarray(images, dtype=float), np.asarray(loss, dtype=float)
    known = np.isfinite(values)
    sums = np.concatenate([[0], np.cumsum(np.where(known, values, 0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    first = np.searchsorted(at, at - width / 2, side="left")
    last = np.searchsorted(at, at + width / 2, side="right")
    number = counts[last] - counts[first]
    return np.where(number > 0, (sums[last] - sums[first]) / np.maximum(number, 1), np.nan)


def _together(curves: Sequence[tuple[Sequence[float], _Line]]) -> tuple[_Line, _Line]:
    """Return points (P,) that all curves reach, and the losses there, (seeds, P)."""
    known = [
        (np.asarray(images, dtype=float)[np.isfinite(loss)], loss[np.isfinite(loss)]) for images, loss in curves
    ]
    known = [(images, loss) for images, loss in known if len(images)]
    if not known:
        raise ValueError("a curve has no finite loss")
    start, end = max(images[0] for images, _ in known), min(images[-1] for images, _ in known)
    at = np.linspace(start, max(end, start), _POINTS)
    return at, np.stack([np.interp(at, images, loss) for images, loss in known])
