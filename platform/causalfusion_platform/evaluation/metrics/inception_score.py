"""The Inception Score: certainty of a classifier on each sample, and variety of its answers."""

from __future__ import annotations

import torch
from torch import Tensor

SPLIT_SIZE = 5000


def inception_score(probabilities: Tensor, *, split_size: int = SPLIT_SIZE) -> float:
    """Return the mean over splits of exp(E_x KL(p(y|x) ‖ p(y))) for probabilities (N, C).

    ADM's convention: splits of 5000 samples in their order, the last one of the rest, all with equal weight.
    KL is taken as the entropy of the mean less the mean entropy, with 0 · log 0 = 0. The score lies in [1, C].

    Raises:
        ValueError: `probabilities` is empty, or has rows that are not probabilities.
    """
    if probabilities.ndim != 2 or not len(probabilities):
        raise ValueError(f"probabilities (N, C) are wanted, got {tuple(probabilities.shape)}")
    if probabilities.min() < 0 or not torch.allclose(
        probabilities.sum(dim=1, dtype=torch.float64), probabilities.new_ones((), dtype=torch.float64), atol=1e-3
    ):
        raise ValueError("rows that are no probabilities: they must be at least 0 and sum to 1")
    parts = [_information(part.double()).exp() for part in torch.split(probabilities, split_size)]
    return float(torch.stack(parts).mean())


def _information(probabilities: Tensor) -> Tensor:
    of_mean: Tensor = torch.special.entr(probabilities.mean(dim=0)).sum()
    of_each: Tensor = torch.special.entr(probabilities).sum(dim=1)
    return of_mean - of_each.mean()
