"""Parallel passes over all shards, with one row group of each in memory."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..config.commands import command
from ..config.errors import UserError
from .finite import rows_not_finite
from .manifest import Manifest, Shard
from .shard_file import open_parquet
from .shards import LATENT_COLUMNS

T = TypeVar("T")

Tick = Callable[[int], None]
"""Callback with the number of rows just done."""

ShowRows = Callable[[int, int], None]
"""Callback about twice a second with rows done and total rows."""


class _Stopped(Exception):
    """Another shard has failed, or the pass was interrupted."""


def over_shards(manifest: Manifest, work: Callable[[Shard, Tick], T], show: ShowRows = lambda *_: None) -> list[T]:
    """Return the results of `work` for every shard, in the manifest's order. Its first exception ends the pass."""
    done = [0] * len(manifest.shards)
    stop = threading.Event()

    def one(index: int) -> T:
        def tick(rows: int) -> None:
            done[index] += rows
            if stop.is_set():
                raise _Stopped

        result = work(manifest.shards[index], tick)
        done[index] = manifest.shards[index].rows
        return result

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        futures = [threads.submit(one, index) for index in range(len(manifest.shards))]
        pending = set(futures)
        try:
            while pending:
                finished, pending = wait(pending, timeout=0.5, return_when=FIRST_EXCEPTION)
                for future in finished:
                    future.result()
                show(sum(done), manifest.rows)
        except BaseException:  # an interrupt too: no further shard may start
            stop.set()
            threads.shutdown(wait=False, cancel_futures=True)
            raise
    return [future.result() for future in futures]


def read_groups(folder: Path, shard: Shard, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Yield some columns of each row group of a shard, with verified page checksums.

    Raises:
        UserError: the shard is damaged, or a latent is not finite. The message names the shard.
    """
    for group in range(len(shard.row_groups)):
        yield read_group(folder, shard, group, columns)


def read_group(folder: Path, shard: Shard, group: int, columns: Sequence[str]) -> pa.Table:
    """Return some columns of one row group.

    Raises:
        UserError: the shard is damaged, or a latent is not finite. The message names the shard.
    """
    path = folder / shard.file
    try:
        with open_parquet(path) as file:
            table = file.read_row_group(group, columns=list(columns), use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"shard {path} cannot be read: row group {group}: {error}\n"
            f"  see what is wrong: {command('data', 'verify', folder)}"
        ) from error
    for name in LATENT_COLUMNS:
        if name in columns and len(rows_not_finite(latents_of(table, name))):
            raise UserError(
                f"shard {path} holds NaN or infinity: {name} in row group {group}\n"
                f"  see where: {command('data', 'verify', folder)}"
            )
    return table


def latents_of(table: pa.Table, name: str) -> NDArray[np.float16]:
    """Return a tensor column: (rows, channels, height, width)."""
    latents: NDArray[np.float16] = table.column(name).combine_chunks().to_numpy_ndarray()
    return latents
