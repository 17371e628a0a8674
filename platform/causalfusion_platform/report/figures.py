"""Figures of analyses, as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

_DPI = 130


def step_size_figure(
    laws: Mapping[float, Sequence[float]], counts: Mapping[float, Sequence[int]], path: Path
) -> None:
    """Draw P(|κ| ≤ k) over k for several γ: the exact laws as lines, drawn frequencies as points (Figure 4b)."""
    figure, axes = _figure()
    for (gamma, law), shade in zip(laws.items(), _shades(len(laws)), strict=True):
        sizes = np.arange(1, len(law) + 1)
        axes.plot(sizes, np.cumsum(law), color=shade, label=f"γ = {gamma:g}")
        if gamma in counts:
            drawn = np.cumsum(counts[gamma]) / np.sum(counts[gamma])
            some = np.unique(np.geomspace(1, len(law), 16).astype(int)) - 1
            axes.plot(sizes[some], drawn[some], "o", color=shade, markersize=4)
    axes.set(xscale="log", xlabel="k, tokens of an AR step", ylabel="P(|κ| ≤ k)", ylim=(0, 1.02))
    axes.set_title("How large AR steps are: law (lines) and draws (points)", loc="left", fontsize=10)
    axes.legend(frameon=False)
    _save(figure, path)


def loss_figure(losses: Mapping[int, Sequence[float]], *, title: str, path: Path) -> None:
    """Draw the loss of each AR step, one line for each S (Figure 4c)."""
    figure, axes = _figure()
    for (steps, loss), shade in zip(losses.items(), _shades(len(losses)), strict=True):
        middles = (np.arange(steps) + 0.5) / steps
        axes.plot(middles, loss, "o-", color=shade, markersize=4, label=f"S = {steps}")
    axes.set(xlabel="place along the AR axis, s / S", ylabel="mean squared error", xlim=(0, 1))
    axes.set_title(title, loc="left", fontsize=10)
    axes.legend(frameon=False)
    _save(figure, path)


def plane_figure(
    values: Sequence[Sequence[float]],
    ar_steps: Sequence[int],
    diffusion_steps: Sequence[int],
    *,
    what: str,
    title: str,
    path: Path,
) -> None:
    """Draw the factorization plane: a value for each number of AR steps (down) and diffusion steps (across)."""
    figure, axes = _figure(width=1.2 + 0.95 * len(diffusion_steps), height=1.3 + 0.5 * len(ar_steps))
    table = np.asarray(values)
    # Colour follows ranks: one bad corner would otherwise leave all other cells alike.
    ranks = table.ravel().argsort().argsort().reshape(table.shape) / max(table.size - 1, 1)
    axes.imshow(ranks, cmap="viridis_r", aspect="auto")
    for (row, column), value in np.ndenumerate(table):
        ink = "white" if ranks[row, column] > 0.5 else "black"
        axes.text(column, row, f"{value:.3g}", ha="center", va="center", color=ink, fontsize=9)
    for axis, ticks in ((axes.xaxis, diffusion_steps), (axes.yaxis, ar_steps)):
        axis.set_major_locator(FixedLocator(list(range(len(ticks)))))
        axis.set_minor_locator(NullLocator())
        axis.set_ticklabels([str(tick) for tick in ticks])
    axes.set(xlabel="diffusion steps of each AR step", ylabel="AR steps S")
    axes.set_title(f"{title}\n{what}", loc="left", fontsize=10)
    _save(figure, path)


def _figure(width: float = 6.0, height: float = 3.8) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _shades(count: int) -> list[tuple[float, ...]]:
    return [colormaps["viridis"](0.85 * index / max(count - 1, 1)) for index in range(count)]


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=_DPI)
