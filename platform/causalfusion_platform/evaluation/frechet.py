"""The Fréchet distance between two sets of features, each taken as a Gaussian."""

from __future__ import annotations

import torch
from torch import Tensor


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Return ‖μ_a − μ_b‖² + tr(Σ_a + Σ_b − 2 (Σ_a Σ_b)^½) for features (N, F) and (M, F).

    Exact for rank-deficient covariances: with Σ_a = AᵀA and Σ_b = BᵀB, tr (Σ_a Σ_b)^½ is the sum of the
    singular values of A Bᵀ, so no square root of a singular matrix is taken.

    Raises:
        ValueError: fewer than two rows, or unequal widths.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"two sets of at least 2 features of one width are needed, got {a.shape} and {b.shape}")
    a, b = a.double(), b.double()
    root_a, root_b = _covariance_root(a), _covariance_root(b)
    mean = (a.mean(dim=0) - b.mean(dim=0)).square().sum()
    cross = torch.linalg.svdvals(root_a @ root_b.T).sum()
    return float(mean + root_a.square().sum() + root_b.square().sum() - 2 * cross)


def _covariance_root(features: Tensor) -> Tensor:
    """Return R with Σ = RᵀR, and at most F rows however many features there are."""
    deviations: Tensor = (features - features.mean(dim=0)) / (len(features) - 1) ** 0.5
    if len(deviations) > deviations.shape[1]:
        deviations = torch.linalg.qr(deviations, mode="r").R
    return deviations
