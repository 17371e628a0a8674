"""Read windows of rows from shards, and hand them out as batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from .manifest import Manifest
from .plan import Window, row_order, windows_between


@dataclass(frozen=True)
class Batch:
    """One worker's part of a global batch."""

    samples: range
    """Positions in the stream of rows (images seen before each one); they seed the samples' draws."""
    row_ids: Tensor
    """(B,) int64"""
    latents: Tensor
    """(B, channels, height, width) float32"""
    labels: Tensor
    """(B,) int64"""


def read_window(folder: Path, window: Window, seed: int) -> pa.Table:
    """Read a window's rows in their shuffled order, page checksums verified."""
    files: dict[str, pq.ParquetFile] = {}
    tables = []
    for group in window.groups:
        if group.file not in files:
            files[group.file] = pq.ParquetFile(folder / group.file, page_checksum_verification=True)
        tables.append(files[group.file].read_row_group(group.index))
    # One chunk per column: taking rows of an extension array that lies in several chunks is not supported.
    table = pa.concat_tables(tables).combine_chunks()
    return table.take(pa.array(row_order(window, seed).numpy()))


def to_numpy(table: pa.Table) -> dict[str, NDArray[np.generic]]:
    """Turn rows into arrays: row_id (B,), label (B,), latent (B, channels, height, width) fp16."""
    column = table.column("latent").combine_chunks()
    return {
        "row_id": table.column("row_id").to_numpy(),
        "label": table.column("label").to_numpy(),
        "latent": column.to_numpy_ndarray(),
    }


def to_batch(columns: dict[str, NDArray[np.generic]], first_sample: int) -> Batch:
    """Turn arrays into tensors; `first_sample` is the position of the first row in the stream."""
    return Batch(
        samples=range(first_sample, first_sample + len(columns["label"])),
        row_ids=torch.from_numpy(columns["row_id"].copy()),
        latents=torch.from_numpy(columns["latent"].astype(np.float32)),
        labels=torch.from_numpy(columns["label"].copy()),
    )


def read_all(folder: Path, manifest: Manifest) -> Batch:
    """Read a whole data set in the order of its rows (for evaluation; it must fit in memory)."""
    tables = [pq.read_table(folder / shard.file, page_checksum_verification=True) for shard in manifest.shards]
    return to_batch(to_numpy(pa.concat_tables(tables)), 0)


def local_batches(
    folder: Path, manifest: Manifest, *, seed: int, window_rows: int, batch_size: int, start: int, stop: int
) -> Iterator[Batch]:
    """Yield global batches of rows start … stop − 1 in this process, without Ray; the last may be smaller."""
    rest: pa.Table | None = None
    position = start
    for window in windows_between(manifest, seed, window_rows, start, stop):
        table = read_window(folder, window, seed)
        rest = table if rest is None else pa.concat_tables([rest, table])
        while rest.num_rows >= batch_size:
            yield to_batch(to_numpy(rest.slice(0, batch_size)), position)
            rest = rest.slice(batch_size)
            position += batch_size
    if rest is not None and rest.num_rows:
        yield to_batch(to_numpy(rest), position)
