"""Shards of random latents, as large as real ones: what the benchmarks of reading read."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from causalfusion_platform.data.manifest import AutoencoderId, Manifest, SourceId
from causalfusion_platform.data.shards import Rows, shard_name, write_shard

ROWS_PER_SHARD, ROWS_PER_GROUP = 4096, 256


def write_random_latents(folder: Path, shape: tuple[int, int, int], rows: int) -> Manifest:
    """Write shards with posterior and mirrored images, a shard in memory at a time."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    count = -(-rows // ROWS_PER_SHARD)
    shards = []
    for index in range(count):
        ids = np.arange(index * ROWS_PER_SHARD, min((index + 1) * ROWS_PER_SHARD, rows))
        mean, std, mean_flip, std_flip = (
            random.standard_normal((len(ids), *shape), dtype=np.float32).astype(np.float16) for _ in range(4)
        )
        part = Rows(
            row_ids=ids,
            labels=random.integers(0, 1000, len(ids)),
            keys=[f"n{row:08d}.JPEG" for row in ids],
            mean=mean,
            std=np.abs(std),
            mean_flip=mean_flip,
            std_flip=np.abs(std_flip),
        )
        shards.append(write_shard(part, folder / shard_name(index, count), ROWS_PER_GROUP))
    manifest = Manifest(
        source=SourceId(kind="bundled", location="random numbers", items=rows, digest=""),
        autoencoder=AutoencoderId(name="AutoencoderKL", scale=1.0),
        shape=shape,
        posterior=True,
        flip=True,
        class_names=[str(label) for label in range(1000)],
        rows=rows,
        shards=shards,
    )
    manifest.write(folder)
    return manifest
