"""Collected features: the same whatever the batches are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.platform.evaluation.tiny_extractor import TinyExtractor, random_images
from torch import Tensor

from causalfusion_platform.evaluation.collect import Collected, batches_of, collect
from causalfusion_platform.evaluation.extractors.extractor import Features


def assert_same(found: Collected, expected: Collected) -> None:
    for one, other in ((found.pool, expected.pool), (found.spatial, expected.spatial)):
        assert one is not None
        assert other is not None
        assert one.count == other.count
        torch.testing.assert_close(one.mean, other.mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(one.scatter, other.scatter, rtol=1e-10, atol=1e-10)
    for kept, wanted in ((found.features, expected.features), (found.probabilities, expected.probabilities)):
        assert kept is not None
        assert wanted is not None
        torch.testing.assert_close(kept, wanted)


@pytest.mark.parametrize("batch_size", [1, 7, 20, 64])
def test_what_is_kept(batch_size: int) -> None:
    extractor, images = TinyExtractor(), random_images(20)
    found = collect(extractor, batches_of(images, batch_size))
    expected = extractor.features(images)
    assert expected.spatial is not None
    assert found.features is not None
    assert found.spatial is not None
    assert found.features.dtype == torch.float32
    torch.testing.assert_close(found.features, expected.pool)
    for moments, features in ((found.pool, expected.pool), (found.spatial, expected.spatial)):
        np.testing.assert_allclose(
            moments.statistics().covariance.numpy(), np.cov(features.double().numpy().T), rtol=1e-5
        )
    assert_same(found, collect(extractor, [images]))


def test_batches_are_taken_one_at_a_time() -> None:
    """From an iterator; nothing is read ahead."""
    extractor = TinyExtractor()
    seen: list[int] = []

    def images() -> object:
        for number in range(3):
            seen.append(extractor.seen)
            yield random_images(2, seed=number)

    collect(extractor, images())  # type: ignore[arg-type]
    assert seen == [0, 2, 4]


def test_statistics_alone() -> None:
    extractor, images = TinyExtractor(), random_images(6)
    found = collect(extractor, [images], keep=False)
    assert found.features is None
    assert found.probabilities is None
    assert found.pool.count == 6


def test_an_extractor_without_maps_and_classes() -> None:
    found = collect(TinyExtractor(spatial=0, classes=0), [random_images(6)])
    assert found.spatial is None
    assert found.probabilities is None


class Broken(TinyExtractor):
    """An extractor with damaged weights."""

    def features(self, images: Tensor) -> Features:
        return Features(torch.full((len(images), 2), torch.nan))


def test_nothing_to_collect() -> None:
    with pytest.raises(ValueError, match="no images"):
        collect(TinyExtractor(), [])
    with pytest.raises(ValueError, match="not finite"):
        collect(Broken(), [random_images(2)])
