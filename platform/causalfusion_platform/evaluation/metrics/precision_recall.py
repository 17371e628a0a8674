"""Improved precision and recall (arXiv:1904.06991): shares of one set in the manifold of the other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .distances import distance_blocks

NEIGHBOURS = 3


@dataclass(frozen=True)
class PrecisionRecall:
    """Shares between 0 and 1."""

    precision: float
    """Share of samples that lie in the manifold of the reference, and so look real."""
    recall: float
    """Share of the reference that lies in the manifold of the samples, and so is covered."""


def precision_recall(
    reference: Tensor,
    samples: Tensor,
    *,
    neighbours: int = NEIGHBOURS,
    half: bool = False,
    device: torch.device | str = "cpu",
) -> PrecisionRecall:
    """Return both for features (N, F) and (M, F).

    A manifold is the union of closed balls about a set's features. The radius is the distance to the feature's
    k-th nearest neighbour in its set (k = 3 in ADM's evaluator). Memory does not grow with N · M.

    Args:
        reference: features of real images.
        samples: features of generated ones.
        neighbours: k.
        half: if true, round distances as ADM's evaluator does. Published numbers have that rounding, and are a
            little higher for it. For ADM's 256×256 samples (guided, upsampled) the evaluator has 0.8265 and 0.5309,
            a port that does not round 0.8255 and 0.5285.

    Raises:
        ValueError: unequal widths, or a set of k features or fewer.
    """
    if reference.ndim != 2 or samples.ndim != 2 or reference.shape[1] != samples.shape[1]:
        raise ValueError(
            f"features of one width are needed, got {tuple(reference.shape)} and {tuple(samples.shape)}"
        )
    of_reference, of_samples = (
        manifold_radii(features, neighbours=neighbours, half=half, device=device)
        for features in (reference, samples)
    )
    covered = torch.zeros(len(reference), dtype=torch.bool, device=device)
    realistic = torch.zeros(len(samples), dtype=torch.bool, device=device)
    for rows, blocks in distance_blocks(reference, samples, half=half, device=device):
        for columns, distances in blocks:
            realistic[columns] |= (distances <= of_reference[rows, None]).any(dim=0)
            covered[rows] |= (distances <= of_samples[columns]).any(dim=1)
    return PrecisionRecall(float(realistic.double().mean()), float(covered.double().mean()))


def manifold_radii(
    features: Tensor, *, neighbours: int = NEIGHBOURS, half: bool = False, device: torch.device | str = "cpu"
) -> Tensor:
    """Return the squared distance (N,) of each of the features (N, F) to its k-th nearest neighbour among them.

    Of equal features, each is the other's neighbour at distance 0.

    Raises:
        ValueError: there are k features or fewer.
    """
    if len(features) <= neighbours:
        raise ValueError(f"{len(features)} features have no {neighbours} nearest neighbours each")
    radii = []
    for _, blocks in distance_blocks(features, features, half=half, device=device):
        nearest: Tensor | None = None
        for _, distances in blocks:
            candidates = distances if nearest is None else torch.cat([nearest, distances], dim=1)
            # One more than k, since the smallest is the distance to the feature itself.
            nearest = candidates.topk(min(neighbours + 1, candidates.shape[1]), largest=False).values
        assert nearest is not None
        radii.append(nearest.amax(dim=1))
    return torch.cat(radii)
