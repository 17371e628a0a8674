"""Figures of analyses, as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from .canvas import PALE, canvas, name_ticks, save, shades, title_of
from .numbers import significant

# Of lines with more points only some are marked: S = 256 would be a band of marks.
_MARKS = 32


def step_size_figure(
    laws: Mapping[float, Sequence[float]], counts: Mapping[float, Sequence[int]], path: Path
) -> None:
    """Draw P(|κ| ≤ k) over k for several γ: the exact laws as lines, drawn frequencies as points (Figure 4b)."""
    figure, axes = canvas()
    for (gamma, law), shade in zip(laws.items(), shades(len(laws)), strict=True):
        sizes = np.arange(1, len(law) + 1)
        axes.plot(sizes, np.cumsum(law), color=shade, label=f"γ = {gamma:g}")
        if gamma in counts:
            drawn = np.cumsum(counts[gamma]) / np.sum(counts[gamma])
            some = np.unique(np.geomspace(1, len(law), 16).astype(int)) - 1
            axes.plot(sizes[some], drawn[some], "o", color=shade, markersize=4)
    axes.set(xscale="log", xlabel="k, tokens of an AR step", ylabel="P(|κ| ≤ k)", ylim=(0, 1.02))
    title_of(axes, "How large AR steps are: law (lines) and draws (points)")
    axes.legend(frameon=False)
    save(figure, path)


def loss_figure(
    losses: Mapping[str, Sequence[float]],
    *,
    title: str,
    path: Path,
    bars: Mapping[str, Sequence[float | None]] | None = None,
    shared_axis: bool = False,
) -> None:
    """Draw the loss of each AR step (Figure 4c).

    Args:
        losses: name of a line → the loss of each of its AR steps.
        title: above the axes.
        path: PNG to write.
        bars: name of a line → the half width of each interval. None in it: there is none.
        shared_axis: lines of different S reach from 0 to 1, so that one AR step of S takes 1 / S of the axis.
    """
    figure, axes = canvas()
    for (name, loss), shade in zip(losses.items(), shades(len(losses)), strict=True):
        steps = np.arange(len(loss))
        half = [float("nan") if bar is None else bar for bar in (bars or {}).get(name, ())]
        every = -(-len(loss) // _MARKS)
        axes.errorbar(
            (steps + 0.5) / len(loss) if shared_axis else steps + 1,
            loss,
            yerr=half if np.isfinite(half).any() else None,
            fmt="o-",
            color=shade,
            markersize=4,
            markevery=every,
            errorevery=every,
            elinewidth=1.0,
            capsize=2,
            label=name,
        )
    axes.set(xlabel="place along the AR axis, s / S" if shared_axis else "AR step", ylabel="mean squared error")
    if shared_axis:
        axes.set_xlim(0, 1)
    title_of(axes, title)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    save(figure, path)


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
    figure, axes = canvas(width=1.2 + 0.95 * len(diffusion_steps), height=1.3 + 0.5 * len(ar_steps))
    heat_map(axes, values, [str(steps) for steps in ar_steps], [str(steps) for steps in diffusion_steps])
    axes.set(xlabel="diffusion steps of each AR step", ylabel="AR steps S")
    title_of(axes, f"{title}\n{what}")
    save(figure, path)


def heat_map(
    axes: Axes,
    values: Sequence[Sequence[float | None]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    higher_is_better: bool = False,
) -> None:
    """Draw a table of numbers, each on a ground that says its rank among all: light is best, gray is missing."""
    table = np.array([[np.nan if value is None else value for value in row] for row in values], dtype=float)
    # Colour follows ranks: one bad corner would otherwise leave all other cells alike.
    order = table if not higher_is_better else -table
    ranks = order.ravel().argsort().argsort().reshape(table.shape) / max(np.isfinite(table).sum() - 1, 1)
    ranks = np.where(np.isfinite(table), ranks, np.nan)
    axes.set_facecolor(PALE)
    axes.imshow(ranks, cmap="viridis_r", aspect="auto", vmin=0, vmax=1)
    for (row, column), value in np.ndenumerate(table):
        ink = "white" if ranks[row, column] > 0.5 else "black"
        text = significant(value, 3) if np.isfinite(value) else "–"
        axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=9)
    name_ticks(axes, "x", range(len(columns)), columns)
    name_ticks(axes, "y", range(len(rows)), rows)
