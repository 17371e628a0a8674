"""The Fréchet distance between two sets of features, each taken as a Gaussian."""

from __future__ import annotations

import torch
from torch import Tensor

from .statistics import Statistics


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Return ‖μ_a − μ_b‖² + tr(Σ_a + Σ_b − 2 (Σ_a Σ_b)^½) for features (N, F) and (M, F).

    It is exact for rank-deficient covariances, since it needs no square root of a singular matrix. With Σ_a = AᵀA
    and Σ_b = BᵀB, tr (Σ_a Σ_b)^½ is the sum of the singular values of A Bᵀ.

    Raises:
        ValueError: fewer than two rows, or unequal widths.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"two sets of at least 2 features of one width are needed, got {a.shape} and {b.shape}")
    a, b = a.double(), b.double()
    shift = a.mean(dim=0) - b.mean(dim=0)
    return _distance(shift, _root_of_features(a), _root_of_features(b))


def frechet_of_statistics(a: Statistics, b: Statistics) -> float:
    """Return the same distance from means and covariances, as FID is defined.

    Covariances may be rank-deficient, as those of fewer features than their width are. Where both have full rank
    it is ADM's number up to rounding. ADM takes `scipy.linalg.sqrtm` of Σ_a Σ_b, and adds 10⁻⁶ to the diagonals
    where that fails.

    Raises:
        ValueError: unequal widths, or a matrix that is not a covariance.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"statistics are of {len(a.mean)} and {len(b.mean)} features")
    shift = a.mean.double() - b.mean.double()
    return _distance(shift, _root_of_covariance(a.covariance), _root_of_covariance(b.covariance))


def _distance(shift: Tensor, root_a: Tensor, root_b: Tensor) -> float:
    cross = torch.linalg.svdvals(root_a @ root_b.T).sum()
    return float(shift.square().sum() + root_a.square().sum() + root_b.square().sum() - 2 * cross)


def _root_of_features(features: Tensor) -> Tensor:
    """Return R with Σ = RᵀR and at most F rows, for any number of features."""
    deviations: Tensor = (features - features.mean(dim=0)) / (len(features) - 1) ** 0.5
    if len(deviations) > deviations.shape[1]:
        deviations = torch.linalg.qr(deviations, mode="r").R
    return deviations


def _root_of_covariance(covariance: Tensor) -> Tensor:
    """Return R with Σ = RᵀR, one row for each eigenvalue that is not zero but for rounding."""
    values, vectors = torch.linalg.eigh(covariance.double())
    largest = values[-1].clamp(min=0)
    # Statistics kept in float32 have eigenvalues below zero, of the size of float32's rounding.
    if not values.isfinite().all() or values[0] < -1e-4 * largest:
        raise ValueError(f"no covariance: eigenvalues from {float(values[0]):g} to {float(values[-1]):g}")
    # An eigenvalue that is zero but for rounding would enter with its square root, which is not small.
    kept = values > len(values) * torch.finfo(torch.float64).eps * largest
    root: Tensor = values[kept].sqrt()[:, None] * vectors[:, kept].T
    return root
