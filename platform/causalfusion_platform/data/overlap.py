"""Rows that training and validation share: by row id or key within one source, and by content."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from causalfusion import draws

from .fingerprints import fingerprints
from .manifest import Manifest, Shard
from .passes import read_group
from .shard_file import threads_for
from .subset import whole_location

MOST_BYTES = 128 * 2**20
"""Bytes of latents of each folder that are compared: 1,048,576 digits, or 16,384 images of KL-16 at 256×256."""


class ShardsOf(NamedTuple):
    """Shards of one split."""

    folder: Path
    manifest: Manifest


class Overlap(NamedTuple):
    """Rows of validation that are rows of training too."""

    keys: list[str]
    """Their names, in the order of the shards."""
    compared: int
    """Rows of validation that were compared."""
    of_training: float
    """Share of the rows of training that were compared."""


def shared_rows(train: ShardsOf, validation: ShardsOf) -> Overlap | None:
    """Return the rows that both folders have of one source, or None if their sources are not comparable.

    Row ids are compared if both were listed from the same images, and keys if both are from one location. Every row
    is compared: these columns are small.
    """
    one, other = train.manifest.source, validation.manifest.source
    if one.kind == other.kind and one.digest == other.digest:
        column = "row_id"
    elif one.kind == other.kind and whole_location(one.location) == whole_location(other.location):
        column = "key"
    else:
        return None
    known = _read(train, [column], _groups(train.manifest)).column(column)
    rows = _read(validation, list({column, "key"}), _groups(validation.manifest))
    found = rows.filter(pc.is_in(rows.column(column), value_set=known.combine_chunks()))
    return Overlap(found.column("key").to_pylist(), rows.num_rows, 1.0)


def shared_latents(train: ShardsOf, validation: ShardsOf, most_bytes: int = MOST_BYTES) -> Overlap:
    """Return the rows of validation whose `mean` is that of a row of training, by 64-bit hashes.

    All rows are compared if the latents of a folder take at most `most_bytes`. Of larger folders, that many bytes
    of row groups are drawn with one seed. A share s of n compared rows is then missed with probability
    (1 − f)^(s n), where f is the share of training that was compared.
    """
    groups = _drawn(train.manifest, most_bytes)
    known = np.concatenate([hashes for _, hashes in _hashed(train, groups)])
    found: list[str] = []
    compared = 0
    for keys, hashes in _hashed(validation, _drawn(validation.manifest, most_bytes)):
        found += [keys[row] for row in np.flatnonzero(np.isin(hashes, known))]
        compared += len(keys)
    return Overlap(found, compared, len(known) / train.manifest.rows)


def _groups(manifest: Manifest) -> list[tuple[Shard, int]]:
    return [(shard, group) for shard in manifest.shards for group in range(len(shard.row_groups))]


def _drawn(manifest: Manifest, most_bytes: int) -> list[tuple[Shard, int]]:
    """Return row groups up to a number of bytes of `mean`, at least one, in the order of the shards."""
    groups = _groups(manifest)
    order = torch.randperm(len(groups), generator=draws.stream(0, "row groups to compare")).tolist()
    row_bytes = 2 * int(np.prod(manifest.shape))
    ends = np.cumsum([groups[place][0].row_groups[groups[place][1]] * row_bytes for place in order])
    number = max(1, int(np.searchsorted(ends, most_bytes, side="right")))
    return [groups[place] for place in sorted(order[:number])]


def _hashed(shards: ShardsOf, groups: Sequence[tuple[Shard, int]]) -> list[tuple[list[str], NDArray[np.uint64]]]:
    """Return the keys and the hashes of the latents of each row group."""

    def one(place: tuple[Shard, int]) -> tuple[list[str], NDArray[np.uint64]]:
        table = read_group(shards.folder, *place, ["row_id", "key", "mean"])
        return table.column("key").to_pylist(), fingerprints(table).latents

    with ThreadPoolExecutor(threads_for(shards.folder)) as threads:
        return list(threads.map(one, groups))


def _read(shards: ShardsOf, columns: Sequence[str], groups: Sequence[tuple[Shard, int]]) -> pa.Table:
    read = partial(_read_one, shards.folder, columns)
    with ThreadPoolExecutor(threads_for(shards.folder)) as threads:
        return pa.concat_tables(threads.map(read, groups))


def _read_one(folder: Path, columns: Sequence[str], place: tuple[Shard, int]) -> pa.Table:
    return read_group(folder, *place, columns)
