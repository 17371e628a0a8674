"""Figures 4b and 4c: sizes of the AR steps of training, and the loss of a model at each of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from causalfusion import DiffusionConfig, Model
from causalfusion.analysis import sampled_step_sizes, step_size_law, validation_loss

from ...data.read import Batch
from ...report.figures import step_size_figure

LOSS_ROWS = 2048
"""Rows whose loss is measured: a part of a large data set is enough."""
_SPLITS_DRAWN = 2000
# Orders, times and noises drawn for each image: one draw leaves the loss of few tokens noisy.
_LOSS_DRAWS = 8


def draw_step_sizes(tokens: int, gammas: Iterable[float], seed: int, path: Path) -> dict[str, list[float]]:
    """Draw the laws of |κ| for several γ and the draws of training (Figure 4b). Return the laws (L,) by γ."""
    ordered = sorted(set(gammas), reverse=True)
    laws = {gamma: step_size_law(tokens, gamma).tolist() for gamma in ordered}
    counts = {gamma: sampled_step_sizes(tokens, gamma, _SPLITS_DRAWN, seed).tolist() for gamma in ordered}
    step_size_figure(laws, counts, path)
    return {f"{gamma:g}": law for gamma, law in laws.items()}


def losses_by_step(
    model: Model,
    data: Batch,
    diffusion: DiffusionConfig,
    ar_steps: Sequence[int],
    seed: int,
    draws: int = _LOSS_DRAWS,
) -> dict[int, list[float]]:
    """Return the mean squared error of each AR step by S, (S,) each (Figure 4c)."""
    latents, labels = data.latents.repeat(draws, 1, 1, 1), data.labels.repeat(draws)
    return {
        steps: validation_loss(model, latents, labels, diffusion, num_ar_steps=steps, seed=seed).tolist()
        for steps in ar_steps
    }
