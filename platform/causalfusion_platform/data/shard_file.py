"""Opening of shards, on disk or on object storage."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..storage.object_path import ObjectFile, ObjectPath

_REQUESTS = 16
"""Shards of object storage that are checked at once. Their threads mostly wait."""


def threads_for(folder: Path) -> int:
    """Return the number of threads for work on the shards of a folder."""
    cores = len(os.sched_getaffinity(0))
    return max(cores, _REQUESTS) if isinstance(folder, ObjectPath) else cores


def open_parquet(path: Path, *, checksums: bool = True) -> pq.ParquetFile:
    """Open a shard.

    Args:
        path: its path. Of an object, ranges of bytes are read as they are needed.
        checksums: verify the checksum of each page that is read.

    Raises:
        OSError: it cannot be read, or it is damaged. Of object storage: only if it is missing or damaged.
        ArrowException: it is not Parquet.
        Unreadable: object storage does not answer, in all attempts.
    """
    if isinstance(path, ObjectPath):
        # One request then reads all columns of a row group that lie side by side.
        return pq.ParquetFile(ObjectFile(path), pre_buffer=True, page_checksum_verification=checksums)
    return pq.ParquetFile(path, page_checksum_verification=checksums)


def read_parquet(path: Path, columns: Sequence[str]) -> pa.Table:
    """Read some columns of a whole shard, with verified page checksums.

    Raises:
        OSError: see `open_parquet`.
        ArrowException: see there.
        KeyError: a column is missing.
    """
    with open_parquet(path) as file:
        table = file.read(columns=list(columns))
    return table.select(list(columns))
