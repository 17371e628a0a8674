"""The KV cache: what it keeps, what is written over, and what is never copied."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from causalfusion.attention.cache import KVCache

BATCH, HEADS, WIDTH = 3, 2, 4


def keys_and_values(tokens: int, seed: int, batch: int = BATCH) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, HEADS, tokens, WIDTH)
    k, v = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return k, v


def test_kept_tokens_come_before_new_ones_in_every_layer() -> None:
    """Against concatenation: two tokens kept, then one, with others looked at in between."""
    cache = KVCache(depth=2, capacity=7)
    kept: list[list[tuple[Tensor, Tensor]]] = [[], []]
    for turn, (tokens, keep) in enumerate([(2, True), (4, False), (1, True), (4, False), (3, False)]):
        for layer in range(2):
            new = keys_and_values(tokens, seed=10 * turn + layer)
            found = cache.layer(layer, BATCH).extend(*new)
            for part in range(2):
                expected = torch.cat([*(pair[part] for pair in kept[layer]), new[part]], dim=2)
                assert torch.equal(found[part], expected)
            if keep:
                kept[layer].append(new)
        if keep:
            cache.length += tokens
    assert cache.length == 3


def test_nothing_is_copied_when_the_cache_grows() -> None:
    """All keys and values that are handed out are views of one allocation."""
    cache = KVCache(depth=2, capacity=6)
    places = set()
    for tokens in (1, 2, 3):
        for layer in range(2):
            k, v = cache.layer(layer, BATCH).extend(*keys_and_values(tokens, seed=tokens))
            places |= {k.untyped_storage().data_ptr(), v.untyped_storage().data_ptr()}
        cache.length += tokens
    assert len(places) == 1
    assert cache.store(k).shape == (2, 2, BATCH, HEADS, 6, WIDTH)


def test_fewer_rows_stand_for_the_first_samples() -> None:
    """Without guidance only the first half of a batch is computed; the other samples' keys stay as they are."""
    cache = KVCache(depth=1, capacity=4)
    k, v = keys_and_values(2, seed=0)
    cache.layer(0, BATCH).extend(k, v)
    cache.length = 2
    new_k, new_v = keys_and_values(1, seed=1, batch=2)
    found_k, found_v = cache.layer(0, 2).extend(new_k, new_v)
    assert torch.equal(found_k, torch.cat([k[:2], new_k], dim=2))
    assert torch.equal(found_v, torch.cat([v[:2], new_v], dim=2))
    last = keys_and_values(1, seed=2)
    assert torch.equal(cache.layer(0, BATCH).extend(*last)[0], torch.cat([k, last[0]], dim=2))


def test_the_values_decide_the_type() -> None:
    """Under autocast a normed key is float32 beside a bf16 value; attention wants them alike."""
    cache = KVCache(depth=1, capacity=2)
    k, v = keys_and_values(2, seed=0)
    found_k, found_v = cache.layer(0, BATCH).extend(k.float(), v.bfloat16())
    assert found_k.dtype == found_v.dtype == torch.bfloat16
    assert torch.equal(found_k, k.float().bfloat16())


def test_more_tokens_than_there_is_room_for_are_an_error() -> None:
    cache = KVCache(depth=1, capacity=3)
    cache.layer(0, BATCH).extend(*keys_and_values(2, seed=0))
    cache.length = 2
    with pytest.raises(RuntimeError):
        cache.layer(0, BATCH).extend(*keys_and_values(2, seed=1))
