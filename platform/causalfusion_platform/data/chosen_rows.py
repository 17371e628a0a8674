"""Chosen rows of shards: a seeded part of all, or so many of each class, streamed by row groups."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from causalfusion import draws

from .manifest import Manifest, Shard
from .passes import Tick, latents_of, over_shards, read_group, read_groups
from .read import LATENT, Batch, Columns, to_batch


@dataclass(frozen=True)
class ChosenRows:
    """Some rows of a folder of shards, in the order of the shards."""

    folder: Path
    manifest: Manifest
    places: NDArray[np.int64]
    """(N,) ascending: number of rows before each one in the manifest's shards."""
    labels: NDArray[np.int64]
    """(N,)"""

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.places)

    def batches(self, size: int) -> Iterator[Batch]:
        """Yield posterior means of `size` rows at a time. The last batch may be smaller.

        One row group and one batch are in memory. Row groups without a chosen row are not read.

        Raises:
            UserError: a shard is damaged. The message names it.
        """
        rest: Columns = {}
        done = 0
        for columns in self._groups():
            rest = {name: np.concatenate([rest[name], columns[name]]) for name in columns} if rest else columns
            while len(rest["row_id"]) >= size:
                yield to_batch({name: column[:size] for name, column in rest.items()}, done)
                rest = {name: column[size:] for name, column in rest.items()}
                done += size
        if rest and len(rest["row_id"]):
            yield to_batch(rest, done)

    def _groups(self) -> Iterator[Columns]:
        """Yield the chosen rows of each row group that has any."""
        first = 0
        for shard in self.manifest.shards:
            for group, rows in enumerate(shard.row_groups):
                start, stop = np.searchsorted(self.places, [first, first + rows])
                if start < stop:
                    taken = self.places[start:stop] - first
                    table = read_group(self.folder, shard, group, ["row_id", "label", "mean"])
                    columns = {name: table.column(name).to_numpy()[taken] for name in ("row_id", "label")}
                    yield {**columns, LATENT: latents_of(table, "mean").take(taken, axis=0)}
                first += rows


def choose_rows(
    folder: Path, manifest: Manifest, at_most: int, *, per_class: int | None = None, seed: int = 0
) -> ChosenRows:
    """Choose rows in a seeded order: the first `at_most` of all, or the first `per_class` of each class.

    A class with fewer rows gives all that it has. Labels of all rows are read, and fit in memory.

    Raises:
        UserError: a shard is damaged.
    """
    labels = _labels(folder, manifest)
    order = torch.randperm(len(labels), generator=draws.stream(seed, "probe rows")).numpy()
    if per_class is not None:
        order = order[np.argsort(labels[order], kind="stable")]
        sorted_labels = labels[order]
        order = order[np.arange(len(order)) - np.searchsorted(sorted_labels, sorted_labels) < per_class]
    places = np.sort(order[: None if per_class else at_most])
    return ChosenRows(folder, manifest, places, labels[places])


def _labels(folder: Path, manifest: Manifest) -> NDArray[np.int64]:
    def one(shard: Shard, tick: Tick) -> NDArray[np.int64]:
        parts = []
        for table in read_groups(folder, shard, ["label"]):
            parts.append(table.column("label").to_numpy())
            tick(len(parts[-1]))
        return np.concatenate(parts)

    return np.concatenate(over_shards(manifest, one)).astype(np.int64)
