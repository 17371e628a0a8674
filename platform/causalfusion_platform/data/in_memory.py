"""Batches of a data set that is small enough for the memory of each worker, which needs no other process for them.

Ray Data's processes take seconds of CPU to start, and decode the same rows again in each epoch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from .order import RowGroup, Window
from .read import Collate, Columns, Dataset, read_window, to_batch, worker_rows


def batches_in_memory(
    data: Dataset,
    *,
    batch_size: int,
    start: int,
    stop: int,
    rank: int,
    num_workers: int,
    collate: Collate = to_batch,
) -> Iterator[Any]:
    """Yield worker `rank`'s part of the global batches of rows start … stop − 1. The last may be smaller.

    A row group is read when its first row is needed, and kept. Latents are drawn and rows are transformed for this
    worker's part alone.

    Raises:
        UserError: a shard is damaged. The message names it.
    """
    groups: dict[RowGroup, Columns] = {}
    windows = data.windows(start, stop)
    window = next(windows, None)
    for first in range(start, stop, batch_size):
        part = worker_rows(min(batch_size, stop - first), rank, num_workers)
        end = first + part.stop
        pieces = []
        while window is not None and window.position < end:
            cut = _cut(window, first + part.start, end)
            if cut.start < cut.stop:
                pieces.append(read_window(data, cut, groups))
            if _end(window) > end:
                break
            window = next(windows, None)
        columns = pieces[0]
        if len(pieces) > 1:
            columns = {name: np.concatenate([piece[name] for piece in pieces]) for name in columns}
        yield collate(columns, first + part.start)


def _cut(window: Window, start: int, stop: int) -> Window:
    """Return a window with those of its rows alone that lie at positions start … stop − 1 of the stream."""
    first = max(start, window.position)
    begin = window.start + first - window.position
    end = min(window.stop, window.start + stop - window.position)
    return dataclasses.replace(window, start=begin, stop=max(begin, end), position=first)


def _end(window: Window) -> int:
    return window.position + window.stop - window.start
