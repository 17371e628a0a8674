"""Patches of latents that need not be square."""

from __future__ import annotations

import pytest
import torch

from causalfusion.patches import patchify, unpatchify


@pytest.mark.parametrize(
    ("channels", "patch", "rows", "columns"), [(1, 2, 2, 2), (3, 1, 3, 5), (2, 4, 2, 1), (4, 2, 1, 3)]
)
def test_patches_against_loops(channels: int, patch: int, rows: int, columns: int) -> None:
    """Patches are in raster order; within one, rows, then columns, then channels."""
    latents = torch.randn(2, channels, rows * patch, columns * patch)
    patches = patchify(latents, patch)
    assert patches.shape == (2, rows * columns, patch**2 * channels)
    for y in range(rows):
        for x in range(columns):
            values = [
                latents[:, c, y * patch + p, x * patch + q]
                for p in range(patch)
                for q in range(patch)
                for c in range(channels)
            ]
            assert torch.equal(patches[:, y * columns + x], torch.stack(values, dim=1))
    assert torch.equal(unpatchify(patches, patch, rows, columns), latents)
