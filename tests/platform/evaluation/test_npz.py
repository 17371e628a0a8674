"""ADM's files of statistics: what numpy wrote comes out as it was, all else is refused with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.data.npz import read_arrays
from causalfusion_platform.evaluation.npz import image_batches, statistics_in


def covariance(width: int) -> npt.NDArray[np.float64]:
    return np.atleast_2d(np.cov(np.random.default_rng(width).standard_normal((20, width)), rowvar=False))


@pytest.mark.parametrize("channels", [1, 3])
def test_images_as_tensors_in_their_order(tmp_path: Path, channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (10, 6, 5, channels), np.uint8)
    np.savez(tmp_path / "x.npz", images, np.arange(10))  # arr_0 and arr_1, as ADM's sampler writes them
    batches = list(image_batches(tmp_path / "x.npz", 4))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    found = torch.cat(batches)
    assert (found.dtype, found.shape) == (torch.uint8, (10, channels, 6, 5))
    np.testing.assert_array_equal(found.permute(0, 2, 3, 1).numpy(), images)
    assert read_arrays(tmp_path / "x.npz").keys() == {"arr_1"}


def test_one_array_alone_is_no_npz(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros(3))
    with pytest.raises(UserError, match="cannot be read: it holds one array alone"):
        read_arrays(tmp_path / "x.npy")


def test_pickled_objects_are_not_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", mu=np.array([print], dtype=object))
    with pytest.raises(UserError, match="cannot be read: Object arrays cannot be loaded"):
        read_arrays(tmp_path / "x.npz")


def test_statistics_in_double(tmp_path: Path) -> None:
    """ADM's have float32 means beside float64 covariances."""
    mean = np.arange(4, dtype=np.float32)
    np.savez(tmp_path / "x.npz", mu=mean, sigma=covariance(4), mu_s=mean[:2], sigma_s=covariance(2))
    arrays = read_arrays(tmp_path / "x.npz")
    for suffix, width in (("", 4), ("_s", 2)):
        found = statistics_in(arrays, suffix, tmp_path / "x.npz")
        assert found is not None
        assert found.mean.dtype == found.covariance.dtype == torch.float64
        assert found.mean.tolist() == mean[:width].tolist()
        np.testing.assert_array_equal(found.covariance.numpy(), covariance(width))
    assert statistics_in(arrays, "_t", tmp_path / "x.npz") is None


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"mu": np.zeros(3)}, "only one of mu and sigma"),
        ({"mu": np.zeros(3), "sigma": np.zeros((3, 4))}, r"do not fit: .*\(3, 4\)"),
        ({"mu": np.zeros((1, 3)), "sigma": np.zeros((3, 3))}, "do not fit"),
        ({"mu": np.full(3, np.nan), "sigma": np.zeros((3, 3))}, "mu holds float64 values that are not all finite"),
        ({"mu": np.zeros(3), "sigma": np.full((3, 3), "x")}, "sigma holds <U1 values"),
    ],
)
def test_statistics_that_are_none(arrays: dict[str, npt.NDArray[Any]], reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        statistics_in(arrays, "", Path("some/file.npz"))
    assert "some/file.npz" in str(caught.value)
    assert "wanted: a .npz as ADM's evaluator takes it" in str(caught.value)
