"""Memorization: distances of samples to training images, compared with distances of real images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from causalfusion import draws

from .distances import distance_blocks

QUANTILE = 0.05
MAX_PROBES = 10_000


@dataclass(frozen=True)
class Nearest:
    """The nearest of a set of features to each of some others."""

    distances: Tensor
    """(N,) float64, Euclidean. Exactly 0 for equal features."""
    rows: Tensor
    """(N,) int64, index in the set."""


@dataclass(frozen=True)
class Memorization:
    """Distances of samples to training images, beside those of images that cannot be copies."""

    share: float
    """Share of samples as near to a training image as the nearest `QUANTILE` of real images are.

    Samples of the true distribution have `QUANTILE`. A generator that repeats its training images has 1.
    """
    median: float
    """Median distance of a sample to its nearest training image."""
    median_real: float
    """Median distance of a real image: of a held-out one, or of a training image to its nearest other one."""


def memorization(
    samples: Tensor,
    training: Tensor,
    *,
    held_out: Tensor | None = None,
    quantile: float = QUANTILE,
    max_probes: int = MAX_PROBES,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Memorization:
    """Compare distances of samples (N, F) and of real images to their nearest training images (M, F).

    Args:
        samples: features of generated images, on the CPU as all others.
        training: features of all training images.
        held_out: features of real images that were not trained on. None: training images are left out one at a
            time instead.
        quantile: quantile of the real images' distances, up to which a sample counts as memorized.
        max_probes: training images that are left out, drawn at random if there are more.
        seed: seed of that draw.

    Raises:
        ValueError: unequal widths, no samples, or fewer than two training images.
    """
    if held_out is None:
        probes = torch.randperm(len(training), generator=draws.stream(seed, "memorization probes"))[:max_probes]
        real = nearest(training[probes], training, leave_out=probes, device=device).distances
    else:
        real = nearest(held_out, training, device=device).distances
    found = nearest(samples, training, device=device).distances
    limit = torch.quantile(real, quantile)
    return Memorization(
        share=float((found <= limit).double().mean()),
        median=float(found.quantile(0.5)),
        median_real=float(real.quantile(0.5)),
    )


def nearest(
    features: Tensor, among: Tensor, *, leave_out: Tensor | None = None, device: torch.device | str = "cpu"
) -> Nearest:
    """Return the nearest of the features `among` (M, F) to each of `features` (N, F), both on the CPU.

    `leave_out` (N,) gives a row of `among` to ignore for each of the features, such as the feature itself.

    Raises:
        ValueError: unequal widths, or `among` has too few rows.
    """
    if features.ndim != 2 or among.ndim != 2 or features.shape[1] != among.shape[1]:
        raise ValueError(f"features of one width are needed, got {tuple(features.shape)} and {tuple(among.shape)}")
    if not len(features) or len(among) < (1 if leave_out is None else 2):
        raise ValueError(f"no nearest of {len(among)} features to each of {len(features)}")
    rows = torch.empty(len(features), dtype=torch.int64)
    for block, columns_of in distance_blocks(features, among, device=device):
        best = torch.full((block.stop - block.start,), torch.inf, dtype=torch.float64, device=device)
        best_row = torch.zeros_like(best, dtype=torch.int64)
        for columns, distances in columns_of:
            if leave_out is not None:
                _forget(distances, leave_out[block].to(device) - columns.start)
            least, column = distances.min(dim=1)
            nearer = least < best
            best, best_row = torch.where(nearer, least, best), torch.where(nearer, column + columns.start, best_row)
        rows[block] = best_row.cpu()
    # Computed from the difference, since |a|² − 2ab + |b|² of equal features is not quite 0.
    differences = torch.cat(
        [
            torch.linalg.vector_norm(some.double() - among[where].double(), dim=1)
            for some, where in zip(torch.split(features, MAX_PROBES), torch.split(rows, MAX_PROBES), strict=True)
        ]
    )
    return Nearest(differences, rows)


def _forget(distances: Tensor, columns: Tensor) -> None:
    """Put the distance of row i to column `columns[i]` at infinity, where that column is in this block."""
    inside = ((columns >= 0) & (columns < distances.shape[1])).nonzero()[:, 0]
    distances[inside, columns[inside]] = torch.inf
