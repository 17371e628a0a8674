"""Order of rows: a pure function of (manifest, seed, position), the same for any number of readers.

The stream is endless: epoch 0's rows, then epoch 1's, and so on, each row exactly once per epoch. A position is
the number of rows before it (images seen). Global batch k is rows kB … (k+1)B − 1 for any number of workers.
A batch may span two epochs, so no rows are dropped.

Within an epoch the row groups of all shards are shuffled and cut into windows. Rows are permuted within a window.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from causalfusion import draws

from .manifest import Manifest


@dataclass(frozen=True)
class RowGroup:
    """One Parquet row group, the unit of reading."""

    file: str
    index: int
    rows: int


@dataclass(frozen=True)
class Window:
    """Row groups that one task reads and permutes together."""

    epoch: int
    index: int
    groups: tuple[RowGroup, ...]
    start: int = 0
    """First row to take, in the permuted order."""
    stop: int = 0
    """One past the last row to take, in the permuted order."""
    position: int = 0
    """Position of the first taken row in the stream."""

    @property
    def rows(self) -> int:
        """Rows in the window's row groups, including those not taken."""
        return sum(group.rows for group in self.groups)


def epoch_windows(manifest: Manifest, seed: int, epoch: int, window_rows: int) -> list[Window]:
    """Return the windows of one epoch, in order. Each except the last holds at least `window_rows` rows."""
    groups = [
        RowGroup(shard.file, index, rows)
        for shard in manifest.shards
        for index, rows in enumerate(shard.row_groups)
    ]
    order = torch.randperm(len(groups), generator=draws.stream(seed, "row groups", epoch))
    windows: list[Window] = []
    pending: list[RowGroup] = []
    for place, position in enumerate(order.tolist(), start=1):
        pending.append(groups[position])
        rows = sum(group.rows for group in pending)
        if rows >= window_rows or place == len(groups):
            windows.append(Window(epoch, len(windows), tuple(pending), stop=rows))
            pending = []
    return windows


def windows_between(manifest: Manifest, seed: int, window_rows: int, start: int, stop: int) -> Iterator[Window]:
    """Yield the windows that cover rows start … stop − 1 of the stream, the first and last cut to fit."""
    position = start - start % manifest.rows
    while position < stop:
        for window in epoch_windows(manifest, seed, position // manifest.rows, window_rows):
            first, last = max(start - position, 0), min(stop - position, window.rows)
            if first < last:
                yield Window(window.epoch, window.index, window.groups, first, last, position + first)
            position += window.rows


def row_order(window: Window, seed: int) -> torch.Tensor:
    """Return the rows to take from the window's concatenated row groups: (stop − start,), int64."""
    generator = draws.stream(seed, "rows", window.epoch, window.index)
    return torch.randperm(window.rows, generator=generator)[window.start : window.stop]
