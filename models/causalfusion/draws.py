"""Random draws as pure functions of a seed and a key (purpose, position).

Every draw of the project comes from a generator made here. Noise, times and AR splits therefore do not depend on
worker count, resuming or batch layout.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import torch
from torch import Tensor


def stream_seed(seed: int, *key: str | int) -> int:
    """Return the seed of the stream named by `key`, a 32-bit hash because torch's CPU generator takes no more.

    Among n streams about n²/2³³ pairs coincide: two samples of a long run may draw the same noise. This adds no
    bias, and each sample has a single stream.
    """
    return _hash(json.dumps([seed, *(part if isinstance(part, str) else int(part) for part in key)]))


def stream(seed: int, *key: str | int) -> torch.Generator:
    """Return a CPU generator for the stream named by `key`."""
    return torch.Generator().manual_seed(stream_seed(seed, *key))


def sample_streams(seed: int, what: str, indices: Sequence[int]) -> list[torch.Generator]:
    """Return one generator per sample index. Sample i draws the same numbers in any batch."""
    return [torch.Generator().manual_seed(value) for value in sample_seeds(seed, what, indices)]


def sample_seeds(seed: int, what: str, indices: Sequence[int]) -> list[int]:
    """Return `stream_seed(seed, what, index)` of every sample index, faster than separate calls."""
    start = json.dumps([seed, what])[:-1]
    return [_hash(f"{start}, {int(index)}]") for index in indices]


def randn_each(generators: Sequence[torch.Generator], *shape: int) -> Tensor:
    """Stack one standard-normal tensor of `shape` per generator: (B, *shape), float32, on the CPU."""
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")
