"""Distribution of a data set's classes, and sample rows of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from causalfusion import draws

from .manifest import Manifest, Shard
from .passes import ShowRows, Tick, latents_of, over_shards, read_group, read_groups


@dataclass(frozen=True)
class Classes:
    """Labels of a data set, and their distribution over row groups."""

    labels: NDArray[np.int64]
    """(rows,) in the order of the manifest's shards."""
    counts: NDArray[np.int64]
    """(classes,) rows of each class."""
    per_group: NDArray[np.int64]
    """(row groups,) number of distinct classes in each."""
    mixed: float
    """Number of distinct classes that a median row group would hold if rows lay in random order."""


@dataclass(frozen=True)
class SampleRows:
    """Sample rows of a data set."""

    labels: torch.Tensor
    """(rows,) int64"""
    keys: list[str]
    mean: torch.Tensor
    """(rows, channels, height, width) float32"""
    mean_flip: torch.Tensor | None
    """Means of the mirrored images, or None without them."""


def read_classes(folder: Path, manifest: Manifest, show: ShowRows = lambda *_: None) -> Classes:
    """Read every label.

    Raises:
        UserError: a shard is damaged.
    """

    def work(shard: Shard, tick: Tick) -> list[NDArray[np.int64]]:
        groups = []
        for table in read_groups(folder, shard, ["label"]):
            groups.append(table.column("label").to_numpy())
            tick(table.num_rows)
        return groups

    groups = [group for shard in over_shards(manifest, work, show) for group in shard]
    labels = np.concatenate(groups)
    counts = np.bincount(labels, minlength=len(manifest.class_names))
    size = np.median([len(group) for group in groups])
    return Classes(
        labels=labels,
        counts=counts,
        per_group=np.array([len(np.unique(group)) for group in groups]),
        mixed=float((1 - (1 - counts / len(labels)) ** size).sum()),
    )


def pick_rows(classes: Classes, seed: int, *, max_classes: int, per_class: int) -> list[int]:
    """Draw rows from the whole data set: up to `per_class` of each of up to `max_classes` classes.

    Classes without rows are not drawn. Rows are in the order of classes.
    """
    present = np.flatnonzero(classes.counts)
    order = torch.randperm(len(present), generator=draws.stream(seed, "preview classes"))
    picked: list[int] = []
    for label in sorted(present[order[:max_classes].numpy()].tolist()):
        rows = np.flatnonzero(classes.labels == label)
        order = torch.randperm(len(rows), generator=draws.stream(seed, "preview rows", label))
        picked += rows[order[:per_class].numpy()].tolist()
    return picked


def read_rows(folder: Path, manifest: Manifest, rows: Sequence[int]) -> SampleRows:
    """Read some rows, counted in the order of the manifest's shards.

    Raises:
        UserError: a shard is damaged, or a latent is not finite.
    """
    groups = [(shard, group, size) for shard in manifest.shards for group, size in enumerate(shard.row_groups)]
    starts = np.cumsum([0, *(size for _, _, size in groups)])
    names = ["mean", "mean_flip"] if manifest.flip else ["mean"]
    found: dict[int, tuple[int, str, list[NDArray[np.float16]]]] = {}
    group_of = np.searchsorted(starts, rows, side="right") - 1
    for index in sorted(set(group_of.tolist())):
        shard, group, _ = groups[index]
        table = read_group(folder, shard, group, ["label", "key", *names])
        latents = [latents_of(table, name) for name in names]
        for row in (row for row, its in zip(rows, group_of, strict=True) if its == index):
            place = row - int(starts[index])
            found[row] = (
                table.column("label")[place].as_py(),
                table.column("key")[place].as_py(),
                [latent[place].copy() for latent in latents],
            )
    labels, keys, views = zip(*(found[row] for row in rows), strict=True)
    stacked = [torch.from_numpy(np.stack(view)).float() for view in zip(*views, strict=True)]
    return SampleRows(
        labels=torch.tensor(labels),
        keys=list(keys),
        mean=stacked[0],
        mean_flip=stacked[1] if manifest.flip else None,
    )
