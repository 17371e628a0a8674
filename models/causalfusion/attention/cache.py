"""Cache of keys and values of the tokens that later AR steps attend to.

Shapes: B samples, H heads, N tokens, E head width.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


class KVCache:
    """Keys and values of up to `capacity` tokens in every layer, in memory that is allocated once.

    The first `length` tokens are kept. Noised tokens are written behind them and overwritten by the next ones.
    Nothing is copied when the cache grows.
    """

    def __init__(self, depth: int, capacity: int) -> None:
        self.depth, self.capacity = depth, capacity
        self.length = 0
        self._store: Tensor | None = None

    def layer(self, index: int, rows: int) -> LayerCache:
        """Return the cache of one layer for the first `rows` samples."""
        return LayerCache(self, index, rows)

    def select(self, rows: Tensor) -> None:
        """Replace the samples by copies of samples `rows`, (new B,) int64, as a beam search does."""
        if self._store is not None:
            self._store = self._store.index_select(2, rows)

    def store(self, like_BHNE: Tensor) -> Tensor:
        """Return the memory, (depth, 2, B, H, capacity, E). The first keys decide sizes, type and device."""
        if self._store is None:
            batch, heads, _, width = like_BHNE.shape
            self._store = like_BHNE.new_empty((self.depth, 2, batch, heads, self.capacity, width))
        return self._store


@dataclass(frozen=True)
class LayerCache:
    """One layer's keys and values of the first `rows` samples."""

    cache: KVCache
    index: int
    rows: int

    def extend(self, k_BHNE: Tensor, v_BHNE: Tensor) -> tuple[Tensor, Tensor]:
        """Write new keys and values behind the kept ones and return views of both together."""
        start = self.cache.length
        end = start + k_BHNE.shape[2]
        keys, values = self.cache.store(v_BHNE)[self.index][:, : self.rows]
        keys[:, :, start:end] = k_BHNE
        values[:, :, start:end] = v_BHNE
        return keys[:, :, :end], values[:, :, :end]
