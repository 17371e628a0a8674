"""An extractor of few numbers: linear features of the pixels, in whatever space a test names."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from causalfusion_platform.evaluation.extractors.extractor import Extractor, Features

CHANNELS, SIZE = 3, 4
PIXELS = CHANNELS * SIZE * SIZE


class TinyExtractor(Extractor):
    """Features are W · pixels / 255 with a random W, probabilities the softmax of the first of them."""

    def __init__(
        self,
        *,
        space: str = "tiny",
        digest: str | None = None,
        width: int = 5,
        spatial: int = 3,
        classes: int = 4,
        judges_classes: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        generator = torch.Generator().manual_seed(7)
        self.pool_weight = torch.randn(PIXELS, width, generator=generator, dtype=torch.float64)
        self.spatial_weight = torch.randn(PIXELS, spatial, generator=generator, dtype=torch.float64)
        self.classes = classes
        self.space = space
        self.digest = digest or hashlib.sha256(space.encode()).hexdigest()
        self.device = torch.device(device)
        self.judges_classes = judges_classes
        self.seen = 0
        """Images whose features were extracted."""

    def features(self, images: Tensor) -> Features:
        assert images.dtype == torch.uint8
        self.seen += len(images)
        pixels = images.flatten(1).double() / 255
        pool = pixels @ self.pool_weight
        return Features(
            pool=pool.float(),
            spatial=(pixels @ self.spatial_weight).float() if self.spatial_weight.shape[1] else None,
            probabilities=pool[:, : self.classes].softmax(dim=1).float() if self.classes else None,
        )


def random_images(count: int, seed: int = 0, low: int = 0, high: int = 256) -> Tensor:
    """Return images (count, 3, 4, 4) uint8 of pixels from low to high − 1."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, (count, CHANNELS, SIZE, SIZE), generator=generator, dtype=torch.uint8)
