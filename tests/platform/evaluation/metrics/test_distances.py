"""Distances in blocks, exact or rounded as ADM's evaluator rounds them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from causalfusion_platform.evaluation.metrics import distances
from causalfusion_platform.evaluation.metrics.distances import distance_blocks, squared_distances


def features(rows: int, width: int, seed: int) -> Tensor:
    return torch.rand(rows, width, generator=torch.Generator().manual_seed(seed)) * 2


def by_pairs(a: Tensor, b: Tensor) -> npt.NDArray[np.float64]:
    return np.array([[((x - y) ** 2).sum() for y in b.double().numpy()] for x in a.double().numpy()])


def in_float16(a: Tensor, b: Tensor) -> npt.NDArray[np.float16]:
    """Compute |a|² − 2ab + |b|² pair by pair in numpy's float16; sums are rounded once, when they are complete."""
    half = np.float16
    result = np.empty((len(a), len(b)), half)
    for i, x in enumerate(a.numpy().astype(half)):
        for j, y in enumerate(b.numpy().astype(half)):
            norm_x, norm_y = (half((one * one).astype(np.float64).sum()) for one in (x, y))
            product = half((x.astype(np.float64) * y.astype(np.float64)).sum())
            result[i, j] = max(half(half(norm_x - half(half(2) * product)) + norm_y), half(0))
    return result


def test_exact_distances() -> None:
    a, b = features(7, 20, 1), features(9, 20, 2)
    found = squared_distances(a, b)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), by_pairs(a, b), rtol=1e-13)
    assert float(squared_distances(a, a).min()) >= 0


def test_rounded_distances() -> None:
    """Bit for bit, except where a sum in float32 falls on the other side of a rounding boundary than in float64."""
    a, b = features(30, 200, 3), features(40, 200, 4)
    found, expected = squared_distances(a, b, half=True), in_float16(a, b)
    assert found.dtype == torch.float32
    assert (found.numpy() == expected).mean() > 0.99
    assert not np.array_equal(found.numpy(), by_pairs(a, b).astype(np.float32))
    np.testing.assert_allclose(found.numpy(), by_pairs(a, b), atol=1.0)


def test_distances_too_large_for_float16() -> None:
    """Where a norm overflows, the whole block is computed in full."""
    a, b = features(4, 50, 5), features(3, 50, 6)
    a[2] *= 100  # the squared norm is above 65,504
    found = squared_distances(a, b, half=True)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), by_pairs(a, b), rtol=1e-6)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 5), (3, 4), (100, 100)])
def test_blocks_are_the_whole(rows: int, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "_ROWS", rows)
    monkeypatch.setattr(distances, "_COLUMNS", columns)
    a, b = features(7, 5, 7), features(9, 5, 8)
    found = torch.full((7, 9), torch.nan, dtype=torch.float64)
    sizes = set()
    for at, blocks in distance_blocks(a, b):
        for across, block in blocks:
            assert found[at, across].isnan().all()
            found[at, across] = block
            sizes.add(block.shape)
    np.testing.assert_allclose(found.numpy(), by_pairs(a, b), rtol=1e-12)
    assert max(height for height, _ in sizes) == min(rows, 7)
    assert max(width for _, width in sizes) == min(columns, 9)
