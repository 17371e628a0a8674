"""Collect features of many images: streamed statistics, and vectors where they are needed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .extractors.extractor import Extractor
from .metrics.statistics import FeatureMoments

BATCH_SIZE = 64


@dataclass(frozen=True)
class Collected:
    """Features of N images. Those of 50,000 images in the space of FID take 700 MB."""

    pool: FeatureMoments
    spatial: FeatureMoments | None
    """Statistics of the spatial features. None: the extractor has none."""
    features: Tensor | None
    """The pool features (N, F), float32, on the CPU. None: they were not kept."""
    probabilities: Tensor | None
    """(N, C), float32, on the CPU. None: the extractor has none, or they were not kept."""
    image_size: int
    """Side of the images, in pixels."""


def collect(extractor: Extractor, batches: Iterable[Tensor], *, keep: bool = True) -> Collected:
    """Extract the features of batches of images (B, C, H, W) uint8, one batch at a time.

    Args:
        keep: if true, keep vectors and probabilities. Statistics alone are enough for Fréchet distances.

    Raises:
        ValueError: `batches` is empty, or features are not finite.
    """
    pool: FeatureMoments | None = None
    spatial: FeatureMoments | None = None
    vectors: list[Tensor] = []
    probabilities: list[Tensor] = []
    size = 0
    for images in batches:
        features, size = extractor.features(images), images.shape[-1]
        if pool is None:
            pool = FeatureMoments(features.pool.shape[1], extractor.device)
            if features.spatial is not None:
                spatial = FeatureMoments(features.spatial.shape[1], extractor.device)
        pool.add(features.pool)
        if spatial is not None and features.spatial is not None:
            spatial.add(features.spatial)
        if keep:
            vectors.append(features.pool.float().cpu())
            if features.probabilities is not None:
                probabilities.append(features.probabilities.float().cpu())
    if pool is None:
        raise ValueError("no images to extract features of")
    return Collected(
        pool,
        spatial,
        features=torch.cat(vectors) if vectors else None,
        probabilities=torch.cat(probabilities) if probabilities else None,
        image_size=size,
    )


def batches_of(images: Tensor, batch_size: int = BATCH_SIZE) -> Sequence[Tensor]:
    """Return images (N, C, H, W) in batches."""
    return torch.split(images, batch_size)
