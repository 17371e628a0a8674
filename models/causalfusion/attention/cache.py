"""Cache of keys and values of the tokens that later AR steps attend to.

Shapes: B samples, H heads, N tokens, E head width.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


class KVCache:
    """Keys and values of up to `capacity` tokens in every layer, in memory that is allocated once.

    The first `length` tokens are kept. Noised tokens are written behind them and overwritten by the next ones.
    Nothing is copied when the cache grows. Other slots hold zeros, which a mask can hide, unlike NaN.
    """

    def __init__(self, depth: int, capacity: int) -> None:
        self.depth, self.capacity = depth, capacity
        self.length = 0
        self._store: Tensor | None = None

    def clear(self) -> None:
        """Forget all tokens. Their memory stays, and holds zeros."""
        self.length = 0
        if self._store is not None:
            self._store.zero_()

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
            self._store = like_BHNE.new_zeros((self.depth, 2, batch, heads, self.capacity, width))
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


@dataclass(frozen=True)
class Place:
    """Place of new tokens in a cache, for a forward pass whose shapes do not depend on the length of the cache."""

    start: int
    """Slot of the first new token: tokens that are kept before it."""
    count: int
    """New tokens."""
    keys: int
    """Slots that the new tokens read."""
    masked: bool
    """True if some of these slots lie behind the new tokens, which a mask must hide."""

    @classmethod
    def of(cls, cache: KVCache, count: int, multiple: int) -> Place:
        """Return the place behind the kept tokens, with slots read in multiples of `multiple`.

        Few numbers of slots then serve all lengths. No mask is needed where the new tokens fill the cache.
        """
        end = cache.length + count
        if end == cache.capacity or multiple == 1:
            return cls(cache.length, count, end, masked=False)
        keys = min(-(-end // multiple) * multiple, cache.capacity)
        return cls(cache.length, count, keys, masked=True)


@dataclass(frozen=True)
class FixedKVCache:
    """Cache whose slots are named by a tensor, so that a recorded forward pass writes where that tensor says."""

    cache: KVCache
    index: Tensor
    """(N,) int64 slots of the new tokens, on the device."""
    keys: int
    """Slots that the new tokens read."""

    def layer(self, index: int, rows: int) -> FixedLayerCache:
        """Return the cache of one layer for the first `rows` samples."""
        return FixedLayerCache(self, index, rows)


@dataclass(frozen=True)
class FixedLayerCache:
    """One layer of a `FixedKVCache`."""

    fixed: FixedKVCache
    index: int
    rows: int

    def extend(self, k_BHNE: Tensor, v_BHNE: Tensor) -> tuple[Tensor, Tensor]:
        """Write new keys and values into their slots and return views of the slots that are read."""
        fixed = self.fixed
        keys, values = fixed.cache.store(v_BHNE)[self.index][:, : self.rows]
        keys.index_copy_(2, fixed.index, k_BHNE.to(keys.dtype))
        values.index_copy_(2, fixed.index, v_BHNE)
        return keys[:, :, : fixed.keys], values[:, :, : fixed.keys]
