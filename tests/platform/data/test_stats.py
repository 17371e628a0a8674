"""Statistics of latents against numpy in float64, on all rows at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.platform.conftest import description_of, small_rows
from tests.platform.data.damage import put, rewrite

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.data.manifest import AutoencoderId, Manifest
from causalfusion_platform.data.shards import Rows, write_shards
from causalfusion_platform.data.stats import latent_stats

REL = 1e-12


def random_rows(rows: int, *, posterior: bool, flip: bool) -> Rows:
    """Return 3 channels, each with its own mean and spread; the second has a mean of 400 spreads."""
    generator = np.random.default_rng(rows)

    def latents(offset: float) -> NDArray[np.float16]:
        noise = generator.standard_normal((rows, 3, 4, 5))
        return (np.array([0.5, 800, -3])[:, None, None] + offset + noise * [[[1]], [[2]], [[0.25]]]).astype(
            np.float16
        )

    def deviations() -> NDArray[np.float16]:
        return generator.uniform(0.01, 3, (rows, 3, 4, 5)).astype(np.float16)

    return Rows(
        row_ids=np.arange(rows),
        labels=np.arange(rows) % 3,
        keys=[f"key {row}" for row in range(rows)],
        mean=latents(0),
        std=deviations() if posterior else None,
        mean_flip=latents(0.125) if flip else None,
        std_flip=deviations() if posterior and flip else None,
    )


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("posterior", [False, True])
@pytest.mark.parametrize("rows", [1, 37, 700])
def test_as_numpy_has_it(own_folder: Path, rows: int, posterior: bool, flip: bool) -> None:
    """Over shards and row groups of unequal sizes; 700 rows are more than are turned into float64 at once."""
    data = random_rows(rows, posterior=posterior, flip=flip)
    description = description_of(data).model_copy(
        update={"autoencoder": AutoencoderId(name="AutoencoderKL", scale=0.25)}
    )
    sizes = {1: (1, 1), 37: (10, 4), 700: (600, 500)}[rows]
    manifest = write_shards(data, description, own_folder, rows_per_shard=sizes[0], rows_per_group=sizes[1])
    found = latent_stats(own_folder, manifest)
    assert (found.rows, found.views, found.scale) == (rows, 1 + flip, 0.25)
    means = np.concatenate([part for part in (data.mean, data.mean_flip) if part is not None]).astype(np.float64)
    stds = [part.astype(np.float64) for part in (data.std, data.std_flip) if part is not None]
    noise = np.concatenate(stds) ** 2 if stds else np.zeros_like(means)
    assert len(found.channels) == 3
    for spread, mean, variance in [
        *zip(found.channels, means.swapaxes(0, 1), noise.swapaxes(0, 1), strict=True),
        (found.overall, means, noise),
    ]:
        assert spread.mean == pytest.approx(mean.mean(), rel=REL)
        assert spread.std == pytest.approx(math.sqrt(mean.var() + variance.mean()), rel=REL)
        assert spread.posterior_std == pytest.approx(math.sqrt(variance.mean()), rel=REL)
        assert (spread.min, spread.max) == (mean.min(), mean.max())
    assert found.suggested_scale == pytest.approx(0.25 / found.overall.std, rel=REL)


def test_draws_from_the_posteriors_have_the_standard_deviation(own_folder: Path) -> None:
    """The law of total variance, against draws: 200 of each of 42,000 posteriors, so the error is well below 1%."""
    data = random_rows(700, posterior=True, flip=False)
    manifest = write_shards(data, description_of(data), own_folder, rows_per_shard=300, rows_per_group=100)
    assert data.std is not None
    noise = np.random.default_rng(0).standard_normal((200, *data.mean[:, 2].shape), dtype=np.float32)
    draws = data.mean[:, 2].astype(np.float32) + data.std[:, 2].astype(np.float32) * noise
    assert latent_stats(own_folder, manifest).channels[2].std == pytest.approx(
        draws.std(dtype=np.float64), rel=1e-3
    )


def test_the_digits(digits_folder: Path) -> None:
    from sklearn.datasets import load_digits

    pixels = load_digits().data / 8 - 1
    found = latent_stats(digits_folder, Manifest.read(digits_folder))
    assert found.overall.std == pytest.approx(pixels.std(), rel=REL)
    assert found.suggested_scale == pytest.approx(1 / pixels.std(), rel=REL)
    assert found.overall == found.channels[0]


@pytest.mark.parametrize("name", ["mean", "std", "mean_flip", "std_flip"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.filterwarnings("error")
def test_numbers_that_are_none(
    write_small: Callable[..., tuple[Path, Rows, Manifest]], name: str, value: float
) -> None:
    folder, _, _ = write_small(30, rows_per_shard=10, rows_per_group=4, posterior=True, flip=True)
    file = rewrite(folder, 1, put(name, 5, value))
    with pytest.raises(UserError, match=rf"{file} holds NaN or infinity: .*\n .*causalfusion data verify"):
        latent_stats(folder, Manifest.read(folder))


def test_latents_that_are_all_equal(own_folder: Path) -> None:
    rows = small_rows(4)
    rows.mean[:] = 0.5
    manifest = write_shards(rows, description_of(rows), own_folder, rows_per_shard=4, rows_per_group=2)
    with pytest.raises(UserError, match=r"every number of every latent in .* is 0.5"):
        latent_stats(own_folder, manifest)


def test_a_damaged_shard(write_small: Callable[..., tuple[Path, Rows, Manifest]]) -> None:
    folder, rows, manifest = write_small(30, rows_per_shard=10, rows_per_group=4)
    path = folder / manifest.shards[2].file
    content = bytearray(path.read_bytes())
    content[content.index(rows.mean[25].tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"shard-00002-of-00003.parquet cannot be read: row group 1: .*CRC"):
        latent_stats(folder, manifest)
