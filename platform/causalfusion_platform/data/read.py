"""Reading of windows of rows from shards, drawing of each row's latent, and batching."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from causalfusion import draws

from ..config.commands import command
from ..config.errors import UserError
from .finite import rows_not_finite
from .manifest import Manifest, latent_columns
from .order import RowGroup, Window, row_order, windows_between
from .shard_file import open_parquet, read_parquet

Columns = dict[str, NDArray[np.generic]]

Transform = Callable[[Columns, range], Columns]
"""(rows, their positions in the stream) → rows, in the task that reads them. It must not change their number."""

LATENT = "latent"
"""Field that is drawn from the columns of a row's posterior."""


@dataclass(frozen=True)
class Batch:
    """Part of a global batch for one worker."""

    samples: range
    """Positions in the stream of rows (images seen before each one), which seed the samples' draws."""
    row_ids: Tensor
    """(B,) int64"""
    latents: Tensor
    """(B, channels, height, width) float32"""
    labels: Tensor
    """(B,) int64"""

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """Folder of shards, and the settings of order and latent draws."""

    folder: Path
    manifest: Manifest
    seed: int
    """Seed of the order and of the draws."""
    window_rows: int
    """Minimum rows of a window, which are permuted together."""
    sample_posterior: bool = False
    """Draw mean + std · ε in place of the mean."""
    flip: bool = False
    """Take the latent of the mirrored image half of the time."""
    fields: tuple[str, ...] = ("label", LATENT)
    """Fields of each row beside `row_id`: columns of the shards as they are, and `latent`, which is drawn."""
    transform: Transform | None = None
    """Makes other fields of these, such as tokens of captions."""

    @property
    def columns(self) -> list[str]:
        """Names of the Parquet columns to read."""
        posterior, flip = self.manifest.posterior and self.sample_posterior, self.manifest.flip and self.flip
        latents = latent_columns(posterior=posterior, flip=flip)
        unchanged = [name for name in self.fields if name != LATENT]
        return ["row_id", *unchanged, *(latents if LATENT in self.fields else [])]

    def windows(self, start: int, stop: int) -> Iterator[Window]:
        """Yield the windows that cover rows start … stop − 1 of the stream."""
        return windows_between(self.manifest, self.seed, self.window_rows, start, stop)


def read_window(data: Dataset, window: Window, groups: dict[RowGroup, Columns] | None = None) -> Columns:
    """Read a window's rows in their shuffled order, with verified page checksums.

    Row groups without a row to take are not read. The result and one row group are in memory at a time.

    Args:
        groups: row groups in memory, to which those that are read are added. None: none is kept.

    Returns:
        row_id (B,) and the data's fields: label (B,), latent (B, channels, height, width) fp16, others (B, …), or
        those that its transform makes of them.

    Raises:
        UserError: a shard is damaged. The message names it.
    """
    order = row_order(window, data.seed).numpy()
    place = np.full(window.rows, -1)  # place in the result of each row of the window's row groups
    place[order] = np.arange(len(order))
    rows: Columns = {}
    files: dict[str, pq.ParquetFile] = {}
    first = 0
    for group in window.groups:
        places = place[first : first + group.rows]
        first += group.rows
        taken = np.flatnonzero(places >= 0)
        if not len(taken):
            continue
        columns = groups.get(group) if groups is not None else None
        if columns is None:
            columns = _read_group(data, files, group)
            if groups is not None:
                groups[group] = columns
        to = places[taken]
        for name in ("row_id", *data.fields):
            drawn = name == LATENT
            values = _draw_latents(data, columns, taken, window.position + to) if drawn else columns[name][taken]
            if name not in rows:
                rows[name] = np.empty((len(order), *values.shape[1:]), values.dtype)
            rows[name][to] = values
    if data.transform is None:
        return rows
    return data.transform(rows, range(window.position, window.position + len(order)))


def _read_group(data: Dataset, files: dict[str, pq.ParquetFile], group: RowGroup) -> Columns:
    path = data.folder / group.file
    try:
        if group.file not in files:
            files[group.file] = open_parquet(path)
        # Columns are read in parallel, which makes the first batch available sooner.
        table = files[group.file].read_row_group(group.index, columns=data.columns, use_threads=True)
        columns = {name: _as_numpy(table.column(name)) for name in data.columns}
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:  # a damaged footer has other columns
        share = next(shard.rows for shard in data.manifest.shards if shard.file == group.file) / data.manifest.rows
        raise UserError(
            f"shard {path} cannot be read: row group {group.index}: {error}\n"
            f"  see what is wrong: {command('data', 'verify', data.folder)}; restore the file and run the "
            f"same command again, or go on without its rows: data.verify=hash "
            f"data.max_bad_rows={share + 5e-4:.3f}"
        ) from error
    _check_finite(path, columns)
    return columns


def _check_finite(path: Path, columns: Columns) -> None:
    """Check latents that a manifest vouches for, but that were damaged before they were hashed."""
    for name, values in columns.items():
        if values.dtype == np.float16 and len(rows := rows_not_finite(values)):
            raise UserError(
                f"shard {path} holds NaN or infinity: {name} of row id {columns['row_id'][rows[0]]}\n"
                f"  set bad shards aside: {command('data', 'verify', path.parent, '--quarantine')}"
            )


def _draw_latents(
    data: Dataset, columns: Columns, taken: NDArray[np.int64], samples: NDArray[np.int64]
) -> NDArray[np.generic]:
    """Return the latents of the rows `taken`: a pure function of seed and position of each row in the stream."""
    # Rows are copied with `take`, and torch computes: numpy's indexing and its fp16 are several times slower.
    mean = columns["mean"].take(taken, axis=0)
    std = columns["std"].take(taken, axis=0) if data.sample_posterior else None
    if not data.flip and std is None:
        return mean
    if data.flip:
        for row, coin in enumerate(draws.sample_seeds(data.seed, "flip", samples.tolist())):
            if coin % 2:
                mean[row] = columns["mean_flip"][taken[row]]
                if std is not None:
                    std[row] = columns["std_flip"][taken[row]]
    if std is None:
        return mean
    generators = draws.sample_streams(data.seed, "posterior", samples.tolist())
    latents = draws.randn_each(generators, *mean.shape[1:])
    latents.mul_(torch.from_numpy(std).float()).add_(torch.from_numpy(mean).float())
    drawn: NDArray[np.generic] = latents.half().numpy()
    return drawn


def _as_numpy(column: pa.ChunkedArray) -> NDArray[np.generic]:
    array = column.combine_chunks()
    numbers: NDArray[np.generic]
    if isinstance(array, pa.FixedShapeTensorArray):
        numbers = array.to_numpy_ndarray()
    else:
        # Texts become objects. Numbers must need no copy: a damaged footer may name a latent as a list.
        inner = array.type.value_type if pa.types.is_list(array.type) else array.type
        numbers = array.to_numpy(zero_copy_only=not pa.types.is_string(inner))
    return numbers


def to_columns(table: pa.Table) -> Columns:
    """Turn a table of rows into arrays, without copies if possible."""
    return {name: _as_numpy(table.column(name)) for name in table.column_names}


def to_batch(columns: Columns, first_sample: int) -> Batch:
    """Turn arrays into a batch whose first row is at position `first_sample` in the stream."""
    return Batch(
        samples=range(first_sample, first_sample + len(columns["row_id"])),
        row_ids=torch.from_numpy(columns["row_id"].copy()),
        latents=torch.from_numpy(columns["latent"].astype(np.float32)),
        labels=torch.from_numpy(columns["label"].copy()),
    )


Collate = Callable[[Columns, int], Any]
"""(columns, position of the first row in the stream) → batch."""


def read_all(folder: Path, manifest: Manifest, at_most: int | None = None) -> Batch:
    """Read all rows, or the first `at_most`, in their order as posterior means. They must fit in memory."""
    names = ["row_id", "label", "mean"]
    tables: list[pa.Table] = []
    for shard in manifest.shards:
        if at_most is not None and sum(map(len, tables)) >= at_most:
            break
        path = folder / shard.file
        tables.append(read_parquet(path, names))
        _check_finite(path, to_columns(tables[-1]))
    rows = pa.concat_tables(tables).slice(0, at_most)
    row_id, label, latent = (_as_numpy(rows.column(name)) for name in names)
    return to_batch({"row_id": row_id, "label": label, "latent": latent}, 0)


def worker_rows(batch_size: int, rank: int, num_workers: int) -> slice:
    """Return the rows of a global batch for worker `rank`: equal, contiguous parts in rank order."""
    return slice(rank * batch_size // num_workers, (rank + 1) * batch_size // num_workers)


def local_batches(
    data: Dataset, *, batch_size: int, start: int, stop: int, collate: Collate = to_batch
) -> Iterator[Any]:
    """Yield global batches of rows start … stop − 1 in this process, without Ray. The last may be smaller."""
    rest: Columns = {}
    position = start
    for window in data.windows(start, stop):
        columns = read_window(data, window)
        rest = {name: np.concatenate([rest[name], columns[name]]) for name in columns} if rest else columns
        while len(rest["row_id"]) >= batch_size:
            yield collate({name: column[:batch_size] for name, column in rest.items()}, position)
            rest = {name: column[batch_size:] for name, column in rest.items()}
            position += batch_size
    if rest and len(rest["row_id"]):
        yield collate(rest, position)
