"""Patch orders: which image token comes first (Table 3b).

An order is a permutation of the L = grid² token positions, counted in raster order; entry k is the position
that is visited k-th.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from .config import PatchOrder


def raster_order(grid: int) -> Tensor:
    """Return positions row by row: (L,)."""
    return torch.arange(grid * grid)


def blockwise_order(grid: int, block: int) -> Tensor:
    """Return block-wise raster order: blocks of block×block patches in raster order, raster within each: (L,).

    Raises:
        ValueError: `block` does not divide `grid`.
    """
    if block < 1 or grid % block:
        raise ValueError(f"block {block} does not divide the {grid}×{grid} patch grid")
    positions = raster_order(grid).view(grid, grid)
    return rearrange(positions, "(by y) (bx x) -> (by bx y x)", y=block, x=block)


def dilated_order(grid: int, stride: int) -> Tensor:
    """Return dilated order: every stride-th patch of every stride-th row first, then the next offset: (L,).

    Neighbours in the order lie `stride` patches apart, so early tokens spread over the whole image.

    Raises:
        ValueError: `stride` does not divide `grid`.
    """
    if stride < 1 or grid % stride:
        raise ValueError(f"stride {stride} does not divide the {grid}×{grid} patch grid")
    positions = raster_order(grid).view(grid, grid)
    return rearrange(positions, "(y dy) (x dx) -> (dy dx y x)", dy=stride, dx=stride)


def patch_orders(kind: PatchOrder, grid: int, generators: Sequence[torch.Generator], *, block: int = 4) -> Tensor:
    """Return one patch order per sample: (B, L), int64.

    Args:
        kind: `random` (a permutation per sample), `raster`, `blockwise` or `dilated` (the same for all).
        grid: patches along one side.
        generators: one CPU generator per sample; used by `random` only.
        block: side of a block (`blockwise`) or stride between neighbours (`dilated`), in patches.

    Raises:
        ValueError: unknown kind, or a block that does not divide the grid.
    """
    if kind == "random":
        return torch.stack([torch.randperm(grid * grid, generator=g) for g in generators])
    if kind == "raster":
        order = raster_order(grid)
    elif kind == "blockwise":
        order = blockwise_order(grid, block)
    elif kind == "dilated":
        order = dilated_order(grid, block)
    else:
        raise ValueError(f"unknown patch order {kind!r}; orders: random, raster, blockwise, dilated")
    return order.expand(len(generators), -1)
