"""Drop path, or stochastic depth (arXiv 1603.09382), as in timm: a residual branch is left out for whole samples.

Shapes: B samples, K residual branches, two in each block.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from .. import draws


def drop_path_rates(drop_path: float, depth: int) -> list[float]:
    """Return the rate of each block: linear over the depth, from 0 to `drop_path`."""
    return [drop_path * block / max(depth - 1, 1) for block in range(depth)]


def branch_draws(seed: int, indices: Sequence[int], depth: int) -> Tensor:
    """Draw a uniform number for each residual branch of each sample: (B, K) float32, on the CPU.

    Args:
        seed: decides the draws, with a sample's index.
        indices: number of each sample, such as its position in the stream of training. Sample i draws the same
            numbers in any batch.
        depth: blocks, K / 2.
    """
    generators = draws.sample_streams(seed, "drop path", indices)
    return torch.stack([torch.rand(2 * depth, generator=generator) for generator in generators])


def branch_scales(drawn_BK: Tensor, rates: Sequence[float]) -> Tensor:
    """Return the factor of each residual branch: 0 if it is dropped, else 1 / (1 − rate), which keeps the mean.

    Args:
        drawn_BK: uniform numbers. A branch is dropped if its number is below the rate.
        rates: of each block.

    Raises:
        ValueError: there are not two draws for each block.
    """
    if drawn_BK.ndim != 2 or drawn_BK.shape[1] != 2 * len(rates):
        raise ValueError(
            f"drop path in {len(rates)} blocks needs draws (B, {2 * len(rates)}), got {tuple(drawn_BK.shape)}"
        )
    rate = _of_branches(tuple(rates), drawn_BK.dtype, drawn_BK.device)
    return (drawn_BK >= rate) / (1 - rate)


@lru_cache(maxsize=16)
def _of_branches(rates: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the rate of each residual branch, which stays on the device: a new copy would make the host wait."""
    return torch.tensor(rates, dtype=dtype).repeat_interleave(2).to(device)
