"""Figures of a reproduced table that need more than its numbers: samples, loss curves, and those of its file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ...config.paper_figure import ArStepFigure, TextImageFigure
from ...report.canvas import save
from ...report.figures import loss_figure
from ...report.html import Picture
from ...report.paper.statistics import estimate
from ...report.runs.curves import Curve, training_loss_figure
from ...report.sample_plane import sample_plane
from ...sampling.pixels import Pixels
from ...tracking.journal import StepReport
from ..evaluating.figure_four import draw_step_sizes
from ..runs.folder import RunFolder
from .both_directions import draw_both_directions
from .held_out import LOSS, HeldOutSets
from .rows import Reproduction, trial_name

_GAMMAS = (1.0, 0.95, 0.9, 0.8)
_AR_STEPS = (2, 4, 8, 16, 64, 256)
_LAST = 0.25
"""Last share of a training over which the mean loss is taken."""


def draw_more(
    reproduction: Reproduction, first: Mapping[tuple[str, str, int], Pixels], folder: Path
) -> list[Picture]:
    """Draw figures into a folder, each a file by its title, and return them for the page.

    Args:
        reproduction: the table.
        first: row, column and seed → the first samples there.
        folder: made if need be.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures = [*_samples(reproduction, first, folder), *_losses(reproduction, folder)]
    held_out = HeldOutSets(reproduction)
    if (steps := _most_steps(reproduction)) > 1:
        pictures += _losses_of_rows(reproduction, held_out, steps, folder)
    match reproduction.plan.figure:
        case ArStepFigure():
            pictures += [_step_sizes(reproduction, folder), *_losses_by_step(reproduction, held_out, folder)]
        case TextImageFigure() as figure:
            pictures += draw_both_directions(reproduction, figure, folder)
    return pictures


def _samples(
    reproduction: Reproduction, first: Mapping[tuple[str, str, int], Pixels], folder: Path
) -> list[Picture]:
    """Draw the first samples of every row and column, of the first seed that has them all."""
    for seed in reproduction.plan.seeds:
        rows = [row for row in reproduction.rows if any((file, its) == (row.file, seed) for file, _, its in first)]
        if rows:
            break
    else:
        return []
    drawn = {name for _, name, _ in first}
    columns = [column.name for column in reproduction.table.columns if column.name in drawn]
    samples = {
        (reproduction.label(row), column): first[row.file, column, seed]
        for row in rows
        for column in columns
        if (row.file, column, seed) in first
    }
    path = folder / "samples.png"
    sample_plane(samples, [reproduction.label(row) for row in rows], columns).save(path)
    caption = f"The first samples of each value, seed {seed}; one place has the same class and noise everywhere."
    return [Picture("samples", path.read_bytes(), caption)]


def _losses(reproduction: Reproduction, folder: Path) -> list[Picture]:
    """Draw the training loss of every row, mean and range over seeds (Figure 4a)."""
    curves: dict[str, list[Curve]] = {}
    for row, _, run in reproduction.runs():
        if row in reproduction.rows and len((curve := loss_curve(run))[0]) > 1:
            curves.setdefault(f"{reproduction.table.varied} {reproduction.label(row)}", []).append(curve)
    if not curves:
        return []
    path = save(training_loss_figure(curves, title="Training loss"), folder / "loss.png")
    late = "; ".join(f"{name}: {np.mean([_late(curve) for curve in found]):.4f}" for name, found in curves.items())
    caption = (
        f"Training loss, weighted as each row weights it: mean over seeds. Mean of the last {_LAST:.0%}: {late}."
    )
    return [Picture("loss", path.read_bytes(), caption)]


def loss_curve(run: RunFolder) -> Curve:
    """Return images seen and losses, from a run's journal. Of steps made twice, the later ones count."""
    found = {event.images: event.loss for event in run.journal.events() if isinstance(event, StepReport)}
    return list(found), list(found.values())


def _late(curve: Curve) -> float:
    images, losses = np.asarray(curve[0]), np.asarray(curve[1])
    return float(losses[images > (1 - _LAST) * images.max()].mean())


def _step_sizes(reproduction: Reproduction, folder: Path) -> Picture:
    """Draw the distribution of |κ| under several γ (Figure 4b)."""
    path = folder / "ar_step_sizes.png"
    tokens = reproduction.job.experiment.model.num_tokens
    laws = draw_step_sizes(tokens, _GAMMAS, reproduction.plan.seeds[0], path)
    small = tokens // 16
    shares = "; ".join(f"γ = {gamma}: {sum(law[:small]):.1%}" for gamma, law in laws.items())
    caption = f"How large AR steps are, of {tokens} tokens. With at most {small} token(s): {shares}."
    return Picture("ar_step_sizes", path.read_bytes(), caption)


def _losses_by_step(reproduction: Reproduction, held_out: HeldOutSets, folder: Path) -> list[Picture]:
    """Draw the held-out loss of each AR step of the model trained with random S, mean over seeds (Figure 4c)."""
    by_seed: list[dict[int, list[float]]] = []
    for row, seed, run in reproduction.runs():
        experiment = reproduction.experiments.get(trial_name(row, seed))
        if experiment is None or experiment.objective.num_ar_steps is not None:
            continue
        if not run.finished or experiment.data.validation is None:
            continue
        opened = held_out.of(experiment)
        steps = [steps for steps in _AR_STEPS if steps <= experiment.model.num_tokens]
        by_seed.append({each: opened.losses(run, experiment, each) for each in steps})
    if not by_seed:
        return []
    seeds = {f"S = {steps}": [one[steps] for one in by_seed] for steps in by_seed[0]}
    path = folder / "loss_by_step.png"
    title = "Loss of each AR step on held-out images, random S in training"
    losses = _draw_losses(seeds, title, path, shared_axis=True)
    return [Picture("loss_by_step", path.read_bytes(), f"Mean of {len(by_seed)} seed(s). {_ends(losses)}")]


def _most_steps(reproduction: Reproduction) -> int:
    """Return the largest S at which a column has the denoising loss, or 0."""
    columns = reproduction.table.columns
    return max((column.ar_steps or 0 for column in columns if column.metric == LOSS), default=0)


def _losses_of_rows(reproduction: Reproduction, held_out: HeldOutSets, steps: int, folder: Path) -> list[Picture]:
    """Draw the held-out loss of each of S AR steps, a line for each row, mean over seeds."""
    by_row: dict[str, list[list[float]]] = {}
    for row, seed, run in reproduction.runs():
        experiment = reproduction.experiments.get(trial_name(row, seed))
        if experiment is None or not run.finished or experiment.model.architecture == "dit":
            continue
        name = f"{reproduction.table.varied} {reproduction.label(row)}"
        by_row.setdefault(name, []).append(held_out.of(experiment).losses(run, experiment, steps))
    if not by_row:
        return []
    path = folder / "loss_of_rows.png"
    means = _draw_losses(by_row, f"Held-out loss of each of {steps} AR steps", path)
    falls = "; ".join(f"{name}: {loss[-1] / loss[0] - 1:+.0%}" for name, loss in means.items())
    caption = (
        f"Mean over seeds with its 95% interval, on common draws. From the first AR step to the last: {falls}."
    )
    return [Picture("loss_of_rows", path.read_bytes(), caption)]


def _draw_losses(
    by_seed: Mapping[str, Sequence[Sequence[float]]], title: str, path: Path, *, shared_axis: bool = False
) -> dict[str, list[float]]:
    """Draw the loss of each AR step with its 95% interval over seeds, and return the means: name → AR steps."""
    found = {name: [estimate(step) for step in zip(*seeds, strict=True)] for name, seeds in by_seed.items()}
    means = {name: np.mean(seeds, axis=0).tolist() for name, seeds in by_seed.items()}
    bars = {name: [one.half_width for one in steps] for name, steps in found.items()}
    loss_figure(means, bars=bars, title=title, path=path, shared_axis=shared_axis)
    return means


def _ends(losses: Mapping[str, Sequence[float]]) -> str:
    ends = "; ".join(f"{name}: {loss[0]:.4f}, {loss[-1]:.4f}" for name, loss in losses.items())
    return f"The first AR step and the last: {ends}."
