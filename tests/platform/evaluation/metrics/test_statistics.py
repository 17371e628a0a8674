"""Streamed statistics: what numpy says of all features at once, however they come."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from causalfusion_platform.evaluation.metrics.statistics import FeatureMoments, Statistics

Array = npt.NDArray[np.float64]


def features(rows: int, width: int, seed: int = 0, offset: float = 0.0) -> Array:
    generator = np.random.default_rng(seed)
    mixed: Array = generator.standard_normal((rows, width)) @ generator.standard_normal((width, width))
    return mixed + offset


def counted(parts: list[Array], width: int) -> FeatureMoments:
    moments = FeatureMoments(width)
    for part in parts:
        moments.add(torch.from_numpy(part))
    return moments


def assert_numpys(found: Statistics, expected: Array, tolerance: float = 1e-12) -> None:
    scale = float(expected.var(axis=0).max())
    np.testing.assert_allclose(found.mean.numpy(), expected.mean(axis=0), rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(
        found.covariance.numpy(), np.atleast_2d(np.cov(expected, rowvar=False)), rtol=1e-10, atol=tolerance * scale
    )
    assert torch.equal(found.covariance, found.covariance.T)
    assert found.mean.dtype == found.covariance.dtype == torch.float64


@given(cuts=st.lists(st.integers(0, 60), max_size=8), seed=st.integers(0, 9))
def test_batches_and_order_do_not_matter(cuts: list[int], seed: int) -> None:
    """Batches of any size, empty ones too, in any order."""
    everything = features(60, 4, offset=3.0)
    batches = np.split(everything, sorted(cuts))
    shuffled = [batches[place] for place in np.random.default_rng(seed).permutation(len(batches))]
    whole = counted(shuffled, 4)
    assert whole.count == 60
    assert_numpys(whole.statistics(), everything)


@pytest.mark.parametrize(("rows", "width"), [(2, 5), (30, 64), (500, 1)])
def test_any_rank(rows: int, width: int) -> None:
    everything = features(rows, width)
    assert_numpys(counted([everything[:1], everything[1:]], width).statistics(), everything)


def test_float32_features_far_from_zero() -> None:
    """Sums of squares would lose all digits that the covariance has: 10⁶ beside deviations of about 1."""
    everything = (features(200, 3) + 1e6).astype(np.float32)
    moments = FeatureMoments(3)
    for batch in np.split(everything, 20):
        moments.add(torch.from_numpy(batch))
    exact = everything.astype(np.float64)
    np.testing.assert_allclose(moments.statistics().covariance.numpy(), np.cov(exact.T), rtol=1e-9)
    np.testing.assert_allclose(moments.statistics().mean.numpy(), exact.mean(axis=0), rtol=1e-15)


def test_what_is_returned_does_not_change_later() -> None:
    everything = features(20, 3)
    moments = counted([everything[:10]], 3)
    before = moments.statistics()
    moments.add(torch.from_numpy(everything[10:]))
    assert_numpys(before, everything[:10])


def test_what_cannot_be_counted() -> None:
    moments = counted([features(1, 3)], 3)
    with pytest.raises(ValueError, match="at least 2 features, 1 counted"):
        moments.statistics()
    with pytest.raises(ValueError, match=r"\(N, 3\) are wanted"):
        moments.add(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="not finite"):
        moments.add(torch.tensor([[0.0, torch.nan, 0.0]]))
    assert moments.count == 1


@pytest.mark.parametrize(("mean", "covariance"), [((3,), (3, 2)), ((3,), (2, 2)), ((3, 1), (3, 3)), ((0,), (0, 0))])
def test_shapes_that_do_not_fit(mean: tuple[int, ...], covariance: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"a mean \(F,\) and a covariance \(F, F\)"):
        Statistics(torch.zeros(mean), torch.zeros(covariance))
