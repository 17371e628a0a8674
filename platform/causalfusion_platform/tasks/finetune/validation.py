"""Rows of held-out shards, shared out over ranks, and the results that ranks have of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

import torch

from ...data.manifest import Manifest

T = TypeVar("T")


def own_parts(manifest: Manifest, batch_size: int) -> Iterator[tuple[Manifest, range]]:
    """Yield this rank's batches of held-out rows: the manifest of one shard, and rows of it.

    Batches do not depend on the number of ranks, so that neither do results.
    """
    world, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    number = 0
    for shard in manifest.shards:
        alone = manifest.model_copy(update={"shards": [shard], "rows": shard.rows})
        for start in range(0, shard.rows, batch_size):
            if number % world == rank:
                yield alone, range(start, min(start + batch_size, shard.rows))
            number += 1


def in_order(own: Sequence[list[T]]) -> list[T]:
    """Return the results of all rows in their order, on every rank.

    Args:
        own: a list for each of this rank's batches of `own_parts`.
    """
    world = torch.distributed.get_world_size()
    everyone: list[Sequence[list[T]]] = [[]] * world
    torch.distributed.all_gather_object(everyone, list(own))
    batches = sum(map(len, everyone))
    return [one for number in range(batches) for one in everyone[number % world][number // world]]


class OneShard(Generic[T]):
    """The rows of the shard that was read last, so that no shard is read twice in a row."""

    def __init__(self, read: Callable[[Manifest], T]) -> None:
        self._read, self._file = read, ""

    def rows(self, alone: Manifest) -> T:
        """Return the rows of the only shard of a manifest."""
        [shard] = alone.shards
        if shard.file != self._file:
            self._rows, self._file = self._read(alone), shard.file
        return self._rows
