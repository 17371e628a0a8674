"""Generators of numpy for the draws of augmentation, each a pure function of a seed and a key."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from causalfusion import draws


def numpy_stream(seed: int, *key: str | int) -> np.random.Generator:
    """Return the generator of the stream named by `key`."""
    return np.random.Generator(np.random.PCG64(draws.stream_seed(seed, *key)))


def numpy_streams(seed: int, what: str, positions: Sequence[int]) -> list[np.random.Generator]:
    """Return one generator for each position in the stream of rows."""
    return [np.random.Generator(np.random.PCG64(value)) for value in draws.sample_seeds(seed, what, positions)]
