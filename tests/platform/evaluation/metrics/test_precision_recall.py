"""Precision and recall, against points on a line and every pair of points."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from causalfusion_platform.evaluation.metrics import distances
from causalfusion_platform.evaluation.metrics.distances import squared_distances
from causalfusion_platform.evaluation.metrics.precision_recall import (
    PrecisionRecall,
    manifold_radii,
    precision_recall,
)

Matrix = npt.NDArray[np.float64]


def on_a_line(*points: float) -> Tensor:
    return torch.tensor(points)[:, None]


def cloud(rows: int, width: int, seed: int, spread: float = 1.0) -> Tensor:
    return spread * torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def by_pairs(within: Matrix, between: Matrix, within_other: Matrix, k: int) -> tuple[float, float]:
    """Return precision and recall from all distances: reference–reference, reference–sample, sample–sample."""
    radius = [sorted(row)[k] for row in within]
    other_radius = [sorted(row)[k] for row in within_other]
    rows, columns = between.shape
    real = [any(between[i, j] <= radius[i] for i in range(rows)) for j in range(columns)]
    covered = [any(between[i, j] <= other_radius[j] for j in range(columns)) for i in range(rows)]
    return sum(real) / columns, sum(covered) / rows


def exact(a: Tensor, b: Tensor) -> Matrix:
    distances: Matrix = np.square(a.double().numpy()[:, None] - b.double().numpy()[None]).sum(axis=-1)
    return distances


def rounded(a: Tensor, b: Tensor) -> Matrix:
    distances: Matrix = squared_distances(a, b, half=True).double().numpy()
    return distances


def test_points_on_a_line() -> None:
    """k = 1. Balls about 0, 1, 4 have radii 1, 1, 3: the reference reaches from −1 to 7.

    Balls about the samples −1, 7, 7.5, 20 have radii 8, ½, ½, 12½: 0, 1 and 4 lie in the first.
    """
    reference, samples = on_a_line(0, 1, 4), on_a_line(-1, 7, 7.5, 20)
    assert manifold_radii(reference, neighbours=1).tolist() == [1, 1, 9]
    assert manifold_radii(samples, neighbours=1).tolist() == [64, 0.25, 0.25, 156.25]
    assert precision_recall(reference, samples, neighbours=1) == PrecisionRecall(precision=0.5, recall=1.0)
    # Seen from the other side, the two change places.
    assert precision_recall(samples, reference, neighbours=1) == PrecisionRecall(precision=1.0, recall=0.5)


def test_the_border_belongs_to_the_ball() -> None:
    """k = 3, the default: balls about 0 … 3 reach from −3 to 6; a sample at 6 is in, one a little beyond is not."""
    reference = on_a_line(0, 1, 2, 3)
    assert manifold_radii(reference).tolist() == [9, 4, 4, 9]
    for half in (False, True):
        shares = precision_recall(reference, on_a_line(-3, 6, 6.125, -3.125), half=half)
        assert shares.precision == 0.5


def test_neighbours_do_not_count_a_point_itself_but_its_equals() -> None:
    assert manifold_radii(on_a_line(0, 0, 0, 0, 5)).tolist() == [0, 0, 0, 0, 25]
    assert manifold_radii(on_a_line(0, 0, 2, 3), neighbours=1).tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(
    ("rows", "samples", "width", "k"), [(60, 45, 4, 3), (30, 80, 16, 3), (50, 50, 3, 1), (4, 4, 2, 3)]
)
def test_every_pair(
    rows: int, samples: int, width: int, k: int, half: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one block and in many."""
    a, b = cloud(rows, width, 1), cloud(samples, width, 2, spread=0.7)
    of = rounded if half else exact
    expected = by_pairs(of(a, a), of(a, b), of(b, b), k)
    for block in (8192, 16, 3):
        monkeypatch.setattr(distances, "_ROWS", block)
        monkeypatch.setattr(distances, "_COLUMNS", block + 1)
        found = precision_recall(a, b, neighbours=k, half=half)
        assert (found.precision, found.recall) == expected
    assert found.precision > 0


def test_equal_sets_cover_each_other() -> None:
    a = cloud(40, 6, 3)
    for half in (False, True):
        assert precision_recall(a, a.flip(0), half=half) == PrecisionRecall(1.0, 1.0)


def test_samples_of_one_mode_are_precise_and_cover_little() -> None:
    shares = precision_recall(cloud(300, 3, 4, spread=3), cloud(300, 3, 5, spread=0.1))
    assert shares.precision == 1.0
    assert shares.recall < 0.1


def test_rounding_moves_the_shares() -> None:
    """Features whose norms are large beside their distances, as Inception's: in float16 few distances are left."""
    a, b = (cloud(200, 256, seed, spread=0.05) + 1.5 for seed in (6, 7))
    assert len(set(manifold_radii(a, half=True).tolist())) < 10
    assert len(set(manifold_radii(a).tolist())) > 150
    assert precision_recall(a, b, half=True) != precision_recall(a, b)


@pytest.mark.parametrize(("a", "b"), [((5, 2), (5, 3)), ((5,), (5,))])
def test_widths_that_do_not_fit(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="one width"):
        precision_recall(torch.zeros(a), torch.zeros(b))


@pytest.mark.parametrize(("reference", "samples"), [(3, 10), (10, 3)])
def test_too_few(reference: int, samples: int) -> None:
    with pytest.raises(ValueError, match="3 features have no 3 nearest neighbours"):
        precision_recall(cloud(reference, 2, 8), cloud(samples, 2, 9))
