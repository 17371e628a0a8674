"""Patch orders: the order in which image tokens are visited (Table 3b).

An order is a permutation of the raster positions of a grid. Entry k is the position that is visited k-th.
A grid has `rows` rows of patches. Without `columns` it is square.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from ..config import PatchOrder


def raster_order(rows: int, columns: int | None = None) -> Tensor:
    """Return positions row by row: (L,)."""
    return torch.arange(rows * (columns or rows))


def blockwise_order(rows: int, block: int, columns: int | None = None) -> Tensor:
    """Return block-wise order: blocks of block×block patches in raster order, raster order in each: (L,).

    Raises:
        ValueError: `block` does not divide the grid.
    """
    positions = _grid(rows, columns, "block", block)
    return rearrange(positions, "(by y) (bx x) -> (by bx y x)", y=block, x=block)


def dilated_order(rows: int, stride: int, columns: int | None = None) -> Tensor:
    """Return dilated order: every stride-th patch of every stride-th row, then the next offset: (L,).

    Neighbours in the order lie `stride` patches apart, so early tokens spread over the whole image.

    Raises:
        ValueError: `stride` does not divide the grid.
    """
    positions = _grid(rows, columns, "stride", stride)
    return rearrange(positions, "(y dy) (x dx) -> (dy dx y x)", dy=stride, dx=stride)


def _grid(rows: int, columns: int | None, what: str, divisor: int) -> Tensor:
    columns = columns or rows
    if divisor < 1 or rows % divisor or columns % divisor:
        raise ValueError(f"{what} {divisor} does not divide the {rows}×{columns} patch grid")
    return raster_order(rows, columns).view(rows, columns)


def patch_orders(
    kind: PatchOrder,
    rows: int,
    generators: Sequence[torch.Generator],
    *,
    block: int = 4,
    columns: int | None = None,
) -> Tensor:
    """Return one patch order per sample: (B, L), int64.

    Args:
        kind: `random` (a permutation per sample), `raster`, `blockwise` or `dilated` (the same for all).
        rows: rows of patches.
        generators: one CPU generator per sample, used by `random` only.
        block: side of a block (`blockwise`) or stride between neighbours (`dilated`), in patches.
        columns: patches in a row (default: as many as rows).

    Raises:
        ValueError: unknown kind, or a block that does not divide the grid.
    """
    if kind == "random":
        count = rows * (columns or rows)
        drawn = [torch.randperm(count, generator=g) for g in generators]
        return torch.stack(drawn) if drawn else torch.empty(0, count, dtype=torch.int64)
    if kind == "raster":
        order = raster_order(rows, columns)
    elif kind == "blockwise":
        order = blockwise_order(rows, block, columns)
    elif kind == "dilated":
        order = dilated_order(rows, block, columns)
    else:
        raise ValueError(f"unknown patch order {kind!r}; orders: random, raster, blockwise, dilated")
    return order.expand(len(generators), -1)
