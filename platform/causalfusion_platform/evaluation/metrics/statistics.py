"""Mean and covariance of features, streamed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Statistics:
    """Mean and covariance of a set of features, float64."""

    mean: Tensor
    """(F,)"""
    covariance: Tensor
    """(F, F), with N − 1 in the denominator, as `numpy.cov` has it."""

    def __post_init__(self) -> None:
        width = len(self.mean) if self.mean.ndim == 1 else -1
        if width < 1 or self.covariance.shape != (width, width):
            raise ValueError(
                f"a mean (F,) and a covariance (F, F) are needed, got {tuple(self.mean.shape)} and "
                f"{tuple(self.covariance.shape)}"
            )


class FeatureMoments:
    """Count, mean and summed outer products of deviations of the features seen so far, float64.

    The update is Chan, Golub & LeVeque's. But for rounding, the result does not depend on the batches.
    """

    def __init__(self, width: int, device: torch.device | str = "cpu") -> None:
        """Start without features, which have `width` numbers each."""
        self.count = 0
        self.mean = torch.zeros(width, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(width, width, dtype=torch.float64, device=device)

    def add(self, features: Tensor) -> None:
        """Count features (N, F) of any floating type.

        Raises:
            ValueError: they are of another width, or not all finite.
        """
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ValueError(f"features (N, {len(self.mean)}) are wanted, got {tuple(features.shape)}")
        if not len(features):
            return
        if not features.isfinite().all():
            raise ValueError("features that are not finite: the images or the extractor's weights are damaged")
        features = features.to(self.mean)
        mean = features.mean(dim=0)
        deviations = features - mean
        total = self.count + len(features)
        step = mean - self.mean
        self.scatter.addr_(step, step, alpha=self.count * len(features) / total)
        self.scatter.addmm_(deviations.T, deviations)
        self.mean += step * (len(features) / total)
        self.count = total

    def statistics(self) -> Statistics:
        """Return mean and covariance, on the CPU.

        Raises:
            ValueError: fewer than two features were counted.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 features, {self.count} counted")
        covariance = (self.scatter + self.scatter.T) / (2 * (self.count - 1))
        return Statistics(self.mean.cpu().clone(), covariance.cpu())
