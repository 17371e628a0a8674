"""Collect features of many images: streamed statistics, and vectors where they are needed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from .extractors.extractor import Extractor
from .metrics.statistics import FeatureMoments

BATCH_SIZE = 64
T = TypeVar("T")


@dataclass(frozen=True)
class Collected:
    """Features of N images, on the CPU. Those of 50,000 images in the space of FID take 700 MB."""

    pool: FeatureMoments
    spatial: FeatureMoments | None
    """Statistics of the spatial features. None: the extractor has none."""
    features: Tensor | None
    """The pool features (N, F), float32. None: they were not kept."""
    probabilities: Tensor | None
    """(N, C), float32. None: the extractor has none, or they were not kept."""

    @classmethod
    def joined(cls, parts: Sequence[Collected]) -> Collected:
        """Join parts that several workers collected, in the order of the parts.

        Raises:
            ValueError: `parts` is empty, or they are not of one extractor.
        """
        if not parts:
            raise ValueError("no features were collected")
        first = parts[0]
        return cls(
            pool=_merged([part.pool for part in parts]),
            spatial=None if first.spatial is None else _merged([_there(part.spatial) for part in parts]),
            features=_joined([part.features for part in parts]),
            probabilities=_joined([part.probabilities for part in parts]),
        )


def collect(extractor: Extractor, batches: Iterable[Tensor], *, keep: bool = True) -> Collected:
    """Extract the features of batches of images (B, C, H, W) uint8, one batch at a time.

    Args:
        extractor: the extractor.
        batches: the images.
        keep: if true, keep vectors and probabilities. Statistics alone are enough for Fréchet distances.

    Raises:
        ValueError: `batches` is empty, or features are not finite.
    """
    pool: FeatureMoments | None = None
    spatial: FeatureMoments | None = None
    vectors: list[Tensor] = []
    probabilities: list[Tensor] = []
    for images in batches:
        features = extractor.features(images)
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
    # On the CPU, so that they can be sent to a process without an accelerator.
    spatial = None if spatial is None else _merged([spatial])
    return Collected(_merged([pool]), spatial, _joined(vectors), _joined(probabilities))


def batches_of(images: Tensor, batch_size: int = BATCH_SIZE) -> Sequence[Tensor]:
    """Return images (N, C, H, W) in batches."""
    return torch.split(images, batch_size)


def _merged(parts: Sequence[FeatureMoments]) -> FeatureMoments:
    whole = FeatureMoments(len(parts[0].mean))
    for part in parts:
        whole.merge(part)
    return whole


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    if not parts or parts[0] is None:
        return None
    return torch.cat([_there(part) for part in parts])


def _there(part: T | None) -> T:
    if part is None:
        raise ValueError("parts of different extractors, or kept differently, do not join")
    return part
