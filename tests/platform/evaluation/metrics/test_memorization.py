"""Nearest training images: copies are found, and samples of the true distribution are not taken for copies."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from causalfusion_platform.evaluation.metrics import distances
from causalfusion_platform.evaluation.metrics.memorization import QUANTILE, memorization, nearest

Array = npt.NDArray[np.float64]


def cloud(rows: int, width: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def by_pairs(features: Tensor, among: Tensor, leave_out: Tensor | None = None) -> tuple[Array, list[int]]:
    pairs = np.linalg.norm(features.double().numpy()[:, None] - among.double().numpy()[None], axis=-1)
    if leave_out is not None:
        pairs[np.arange(len(pairs)), leave_out.numpy()] = np.inf
    return pairs.min(axis=1), pairs.argmin(axis=1).tolist()


@pytest.mark.parametrize("block", [8192, 7, 2])
def test_every_pair(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "_ROWS", block)
    monkeypatch.setattr(distances, "_COLUMNS", block + 1)
    samples, training = cloud(20, seed=1), cloud(31, seed=2)
    found = nearest(samples, training)
    expected, rows = by_pairs(samples, training)
    np.testing.assert_allclose(found.distances.numpy(), expected, rtol=1e-12)
    assert found.rows.tolist() == rows

    probes = torch.tensor([30, 0, 7, 8, 9])
    found = nearest(training[probes], training, leave_out=probes)
    expected, rows = by_pairs(training[probes], training, probes)
    np.testing.assert_allclose(found.distances.numpy(), expected, rtol=1e-12)
    assert found.rows.tolist() == rows
    assert float(found.distances.min()) > 0


def test_equal_features_are_at_distance_zero() -> None:
    """Exactly, however large they are; a left-out one does not count, but its equal does."""
    training = 1000 + cloud(10, width=200)
    assert nearest(training[3:5], training).distances.tolist() == [0.0, 0.0]
    assert nearest(training[3:5], training).rows.tolist() == [3, 4]
    doubled = torch.cat([training, training[3:4]])
    found = nearest(doubled[3:5], doubled, leave_out=torch.tensor([3, 4]))
    assert (int(found.rows[0]), float(found.distances[0])) == (10, 0.0)
    assert float(found.distances[1]) > 1


def test_copies_are_memorized() -> None:
    training = cloud(200)
    copies = memorization(training[50:80], training)
    assert (copies.share, copies.median) == (1.0, 0.0)
    expected, _ = by_pairs(training, training, torch.arange(200))
    assert copies.median_real == pytest.approx(float(np.median(expected)), rel=1e-12)


def test_the_share_by_hand() -> None:
    """Training images at 0, 1, 3, 7, 15 are 1, 1, 2, 4, 8 from their nearest; half of them are at most 2 away."""
    training = torch.tensor([0.0, 1, 3, 7, 15])[:, None]
    samples = torch.tensor([2.0, 5, 10, 17.1])[:, None]  # 1, 2, 3 and 2.1 away
    found = memorization(samples, training, quantile=0.5)
    assert (found.share, found.median_real) == (0.5, 2.0)
    assert found.median == pytest.approx(2.05, rel=1e-6)
    held_out = torch.tensor([1.5, 18.0, 25.0])[:, None]  # ½, 3 and 10 away
    found = memorization(samples, training, held_out=held_out, quantile=0.5)
    assert (found.share, found.median_real) == (1.0, 3.0)


def test_new_images_of_the_same_law_are_not_memorized() -> None:
    """As many of them are as near as the quantile says, within four standard deviations."""
    training, samples = cloud(2000, seed=3), cloud(2000, seed=4)
    found = memorization(samples, training)
    assert QUANTILE == 0.05
    assert found.share == pytest.approx(0.05, abs=4 * (2 * 0.05 * 0.95 / 2000) ** 0.5)
    assert found.median == pytest.approx(found.median_real, rel=0.1)
    near = training[:500] + 0.01 * cloud(500, seed=5)
    assert memorization(near, training).share > 0.9


def test_many_training_images_are_sampled() -> None:
    training, samples = cloud(1000, seed=6), cloud(100, seed=7)
    some, same, other = (memorization(samples, training, max_probes=300, seed=seed) for seed in (1, 1, 2))
    whole = memorization(samples, training)
    assert some == same
    assert some.median_real != other.median_real
    assert some.median == whole.median  # of the samples, all count
    assert some.median_real == pytest.approx(whole.median_real, rel=0.15)


def test_none_to_compare_with() -> None:
    for features, among, leave_out in (
        (cloud(2), cloud(0), None),
        (cloud(0), cloud(2), None),
        (cloud(1), cloud(1), torch.tensor([0])),
    ):
        with pytest.raises(ValueError, match="no nearest of"):
            nearest(features, among, leave_out=leave_out)
    with pytest.raises(ValueError, match="one width"):
        nearest(cloud(2, width=3), cloud(2, width=4))
