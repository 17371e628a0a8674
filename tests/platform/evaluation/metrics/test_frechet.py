"""The Fréchet distance, against closed forms and other ways to compute it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import linalg, stats

from causalfusion_platform.evaluation.metrics.frechet import frechet_distance, frechet_of_statistics
from causalfusion_platform.evaluation.metrics.statistics import Statistics

Array = npt.NDArray[np.float64]
WIDTH = 6


def distance(a: Array, b: Array) -> float:
    return frechet_distance(torch.from_numpy(a), torch.from_numpy(b))


def statistics(features: Array) -> Statistics:
    return Statistics(torch.from_numpy(features.mean(axis=0)), torch.from_numpy(np.atleast_2d(np.cov(features.T))))


def between_statistics(a: Array, b: Array) -> float:
    return frechet_of_statistics(statistics(a), statistics(b))


def rotation(seed: int, width: int = WIDTH) -> Array:
    matrix: Array = stats.ortho_group.rvs(width, random_state=np.random.default_rng(seed))
    return matrix


def gaussian(seed: int, mean: Array, axes: Array, deviations: Array, rows: int = 50) -> Array:
    """Return features whose mean is `mean` and whose covariance has these axes and deviations, both exactly."""
    noise = np.random.default_rng(seed).standard_normal((rows, len(mean)))
    whitened = np.linalg.qr(noise - noise.mean(axis=0))[0] * np.sqrt(rows - 1)
    result: Array = mean + whitened @ np.diag(deviations) @ axes.T
    return result


def features(seed: int, rows: int, width: int) -> Array:
    """Return correlated features with a mean of their own."""
    generator = np.random.default_rng(seed)
    mixed: Array = generator.standard_normal((rows, width)) @ generator.standard_normal((width, width))
    return mixed + generator.standard_normal(width)


def by_square_root(a: Array, b: Array) -> float:
    """Compute it as published, with scipy's matrix square root: for covariances of full rank only."""
    root: Any = linalg.sqrtm(np.cov(a.T) @ np.cov(b.T))
    shift = a.mean(axis=0) - b.mean(axis=0)
    return float(shift @ shift + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root.real))


def by_eigenvalues(a: Array, b: Array) -> float:
    """Compute it from eigenvalues, leaving out those that are zero but for rounding: for any rank."""
    values, vectors = np.linalg.eigh(np.cov(a.T))
    rank = min(len(a) - 1, a.shape[1])
    root = vectors[:, -rank:] * np.sqrt(values[-rank:])
    product = np.linalg.eigvalsh(root.T @ np.cov(b.T) @ root)
    both = min(rank, len(b) - 1)
    shift = a.mean(axis=0) - b.mean(axis=0)
    total = np.trace(np.cov(a.T)) + np.trace(np.cov(b.T))
    return float(shift @ shift + total - 2 * np.sqrt(product[-both:]).sum())


@pytest.mark.parametrize(("rows_a", "rows_b", "width"), [(200, 300, 5), (65, 500, 64), (30, 30, 2)])
def test_full_rank_as_scipy_has_it(rows_a: int, rows_b: int, width: int) -> None:
    a, b = features(1, rows_a, width), features(2, rows_b, width)
    assert distance(a, b) == pytest.approx(by_square_root(a, b), rel=1e-7)
    assert by_eigenvalues(a, b) == pytest.approx(by_square_root(a, b), rel=1e-7)


@pytest.mark.parametrize(("rows_a", "rows_b", "width"), [(20, 30, 64), (20, 500, 64), (500, 20, 64), (2, 2, 9)])
def test_any_rank_as_eigenvalues_have_it(rows_a: int, rows_b: int, width: int) -> None:
    a, b = features(3, rows_a, width), features(4, rows_b, width)
    assert distance(a, b) == pytest.approx(by_eigenvalues(a, b), rel=1e-9)


def test_a_shift_counts_by_its_square() -> None:
    axes, deviations = rotation(1), np.linspace(0.5, 3, WIDTH)
    shift = np.arange(WIDTH, dtype=np.float64)
    a = gaussian(1, np.zeros(WIDTH), axes, deviations)
    b = gaussian(2, shift, axes, deviations)
    assert distance(a, b) == pytest.approx(float((shift**2).sum()), rel=1e-12)


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_a_scale_counts_by_the_trace(factor: float) -> None:
    axes, deviations = rotation(2), np.linspace(0.5, 3, WIDTH)
    a = gaussian(3, np.ones(WIDTH), axes, deviations)
    b = gaussian(4, np.ones(WIDTH), axes, factor * deviations)
    assert distance(a, b) == pytest.approx((1 - factor) ** 2 * float((deviations**2).sum()), rel=1e-11)


def test_commuting_covariances_have_a_closed_form() -> None:
    """With common axes it is the squared distance of the means and of the deviations."""
    axes, one, other = rotation(3), np.array([1, 2, 3, 4, 5, 6.0]), np.array([6, 1, 0.5, 4, 0, 2.0])
    a = gaussian(5, np.zeros(WIDTH), axes, one)
    b = gaussian(6, np.full(WIDTH, 2.0), axes, other)
    assert distance(a, b) == pytest.approx(4 * WIDTH + float(((one - other) ** 2).sum()), rel=1e-11)


def test_orthogonal_features_do_not_overlap() -> None:
    """Sets that vary along different axes: the traces add up, and nothing is taken off."""
    axes = rotation(4)
    a = gaussian(7, np.zeros(WIDTH), axes, np.array([1, 2, 3, 0, 0, 0.0]))
    b = gaussian(8, np.zeros(WIDTH), axes, np.array([0, 0, 0, 4, 5, 6.0]))
    assert distance(a, b) == pytest.approx(1 + 4 + 9 + 16 + 25 + 36, rel=1e-11)


@pytest.mark.parametrize(("rows", "width"), [(100, 8), (9, 40)])
def test_it_is_symmetric_and_zero_for_equal_sets(rows: int, width: int) -> None:
    a, b = features(5, rows, width), features(6, rows + 3, width)
    assert distance(a, b) == pytest.approx(distance(b, a), rel=1e-12)
    scale = float(np.trace(np.cov(a.T)))
    shuffled = np.random.default_rng(0).permutation(a)
    assert distance(a, a) == pytest.approx(0, abs=1e-12 * scale)
    assert distance(a, shuffled) == pytest.approx(0, abs=1e-12 * scale)
    assert distance(a, b) > 0.1 * scale


def test_rotating_both_sets_changes_nothing() -> None:
    a, b, axes = features(7, 40, WIDTH), features(8, 50, WIDTH), rotation(5)
    assert distance(a @ axes, b @ axes) == pytest.approx(distance(a, b), rel=1e-11)


def test_features_in_fp32_are_worked_on_in_double() -> None:
    """A common offset of 1000 would otherwise swallow the digits that matter."""
    a, b = (torch.from_numpy(features(seed, 100, WIDTH) + 1000).float() for seed in (9, 10))
    assert frechet_distance(a, b) == frechet_distance(a.double(), b.double())


@pytest.mark.parametrize(
    ("a", "b"), [((1, 4), (5, 4)), ((5, 4), (1, 4)), ((5, 4), (5, 3)), ((5,), (5,)), ((5, 4, 1), (5, 4, 1))]
)
def test_sets_that_cannot_be_compared(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least 2 features of one width"):
        frechet_distance(torch.zeros(a), torch.zeros(b))


@pytest.mark.parametrize(("rows_a", "rows_b", "width"), [(200, 300, 5), (65, 500, 64), (30, 30, 2), (9, 7, 1)])
def test_statistics_of_full_rank_as_scipy_has_it(rows_a: int, rows_b: int, width: int) -> None:
    a, b = features(11, rows_a, width), features(12, rows_b, width)
    assert between_statistics(a, b) == pytest.approx(distance(a, b), rel=1e-10)
    if width > 1:
        assert between_statistics(a, b) == pytest.approx(by_square_root(a, b), rel=1e-9)


@pytest.mark.parametrize(("rows_a", "rows_b", "width"), [(20, 30, 64), (20, 500, 64), (500, 20, 64), (2, 2, 9)])
def test_statistics_of_any_rank_as_features_have_it(rows_a: int, rows_b: int, width: int) -> None:
    """A covariance has its zero eigenvalues only up to rounding, and their roots must not add up."""
    a, b = features(13, rows_a, width), features(14, rows_b, width)
    assert between_statistics(a, b) == pytest.approx(by_eigenvalues(a, b), rel=1e-9)
    assert between_statistics(a, b) == pytest.approx(distance(a, b), rel=1e-9)
    scale = float(np.trace(np.cov(a.T)))
    assert between_statistics(a, a) == pytest.approx(0, abs=1e-12 * scale)


def test_statistics_with_common_axes_have_a_closed_form() -> None:
    """Also where deviations are zero, and where all of one are: then the other's variances add up."""
    axes, one, other = rotation(6), np.array([1, 0, 3, 4, 0, 6.0]), np.array([6, 1, 0.5, 4, 0, 2.0])
    shift = np.linspace(-1, 1, WIDTH)

    def known(mean: Array, deviations: Array) -> Statistics:
        return Statistics(torch.from_numpy(mean), torch.from_numpy(axes @ np.diag(deviations**2) @ axes.T))

    a, b, point = known(np.zeros(WIDTH), one), known(shift, other), known(np.zeros(WIDTH), np.zeros(WIDTH))
    mean = float((shift**2).sum())
    assert frechet_of_statistics(a, b) == pytest.approx(mean + float(((one - other) ** 2).sum()), rel=1e-12)
    assert frechet_of_statistics(point, b) == pytest.approx(mean + float((other**2).sum()), rel=1e-12)
    assert frechet_of_statistics(point, point) == 0.0


def test_statistics_kept_in_float32() -> None:
    """Some files have them so: eigenvalues fall a little below zero, and count as zero."""
    a, b = statistics(features(15, 20, 64)), statistics(features(16, 200, 64))
    rounded = Statistics(a.mean.float(), a.covariance.float())
    assert float(torch.linalg.eigvalsh(rounded.covariance.double())[0]) < 0
    assert frechet_of_statistics(rounded, b) == pytest.approx(frechet_of_statistics(a, b), rel=1e-4)


def test_matrices_that_are_no_covariance() -> None:
    good = Statistics(torch.zeros(2), torch.eye(2))
    for matrix in (torch.diag(torch.tensor([1.0, -0.5])), -torch.eye(2)):
        with pytest.raises(ValueError, match="no covariance"):
            frechet_of_statistics(good, Statistics(torch.zeros(2), matrix))
    with pytest.raises(ValueError, match="2 and 3 features"):
        frechet_of_statistics(good, Statistics(torch.zeros(3), torch.eye(3)))
