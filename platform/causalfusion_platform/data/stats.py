"""Exact statistics of latents over a whole data set, from which an autoencoder's scaling factor follows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..config.errors import UserError
from .manifest import Manifest, Shard
from .passes import ShowRows, Tick, latents_of, over_shards, read_groups

# Rows converted to float64 at a time.
_ROWS_AT_ONCE = 256

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class LatentMoments:
    """Sums over latents in float64, one number per channel."""

    count: int
    """Numbers per channel."""
    mean: Vector
    squares: Vector
    """Sum of squared deviations from the mean."""
    noise: Vector
    """Sum of the posterior's variances, or 0 without a posterior."""
    low: Vector
    high: Vector

    @classmethod
    def of(cls, mean: NDArray[np.float16], std: NDArray[np.float16] | None) -> Self:
        """Return the moments of rows (rows, channels, height, width)."""
        values = _by_channel(mean)
        centre = values.mean(1)
        away = values - centre[:, None]
        spread = np.zeros_like(values) if std is None else _by_channel(std)
        return cls(
            values.shape[1],
            centre,
            np.einsum("cn,cn->c", away, away),
            np.einsum("cn,cn->c", spread, spread),
            values.min(1),
            values.max(1),
        )

    def merged(self, other: Self) -> Self:
        """Return the moments of both sets of rows together (Chan, Golub and LeVeque 1983)."""
        count = self.count + other.count
        apart = other.mean - self.mean
        return type(self)(
            count,
            self.mean + apart * (other.count / count),
            self.squares + other.squares + apart**2 * (self.count * other.count / count),
            self.noise + other.noise,
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
        )

    @property
    def all_channels(self) -> Self:
        """Return the moments of all channels as one."""
        channels = [
            type(self)(self.count, *(values[index : index + 1] for values in list(vars(self).values())[1:]))
            for index in range(len(self.mean))
        ]
        return reduce(type(self).merged, channels)


@dataclass(frozen=True)
class Spread:
    """Mean, standard deviation and range of the latents of training, in the shards' scale."""

    mean: float
    std: float
    """√(variance of the posteriors' means + mean of the posteriors' variances)."""
    posterior_std: float
    """√(mean of the posteriors' variances), or 0 without a posterior."""
    min: float
    """Smallest posterior mean."""
    max: float
    """Largest posterior mean."""


@dataclass(frozen=True)
class LatentStats:
    """Statistics of a data set."""

    rows: int
    views: int
    """Latents per row: 2 with mirrored images, which count like the others."""
    scale: float
    """Factor by which the shards' latents were multiplied."""
    channels: list[Spread]
    overall: Spread
    """Statistics of all channels as one."""

    @property
    def suggested_scale(self) -> float:
        """Factor that gives latents a standard deviation of 1 (Rombach et al. 2022, appendix G)."""
        return self.scale / self.overall.std


def latent_stats(folder: Path, manifest: Manifest, show: ShowRows = lambda *_: None) -> LatentStats:
    """Compute the statistics of every row of a data set.

    Raises:
        UserError: a shard is damaged, a latent is not finite, or all latents are equal.
    """

    def work(shard: Shard, tick: Tick) -> LatentMoments:
        parts = []
        for table in read_groups(folder, shard, manifest.latent_columns):
            parts += [
                _moments(table.slice(start, _ROWS_AT_ONCE), manifest)
                for start in range(0, table.num_rows, _ROWS_AT_ONCE)
            ]
            tick(table.num_rows)
        return reduce(LatentMoments.merged, parts)

    moments = reduce(LatentMoments.merged, over_shards(manifest, work, show))
    whole = _spreads(moments.all_channels)[0]
    if not whole.std:
        raise UserError(f"every number of every latent in {folder} is {whole.mean:g}: there is nothing to scale")
    return LatentStats(
        rows=manifest.rows,
        views=2 if manifest.flip else 1,
        scale=manifest.autoencoder.scale,
        channels=_spreads(moments),
        overall=whole,
    )


def _moments(table: pa.Table, manifest: Manifest) -> LatentMoments:
    def view(suffix: str) -> LatentMoments:
        std = latents_of(table, f"std{suffix}") if manifest.posterior else None
        return LatentMoments.of(latents_of(table, f"mean{suffix}"), std)

    return view("").merged(view("_flip")) if manifest.flip else view("")


def _by_channel(latents: NDArray[np.float16]) -> Vector:
    """Return the numbers of each channel: (channels, rows × height × width)."""
    return latents.astype(np.float64).swapaxes(0, 1).reshape(latents.shape[1], -1)


def _spreads(moments: LatentMoments) -> list[Spread]:
    return [
        Spread(
            mean=float(mean),
            std=math.sqrt((squares + noise) / moments.count),
            posterior_std=math.sqrt(noise / moments.count),
            min=float(low),
            max=float(high),
        )
        for mean, squares, noise, low, high in zip(
            moments.mean, moments.squares, moments.noise, moments.low, moments.high, strict=True
        )
    ]
