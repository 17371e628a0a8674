"""Patch orders (Table 3b)."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from causalfusion.config import PatchOrder
from causalfusion.ordering import blockwise_order, dilated_order, patch_orders, raster_order


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(count)]


@pytest.mark.parametrize("kind", get_args(PatchOrder))
@given(blocks=st.integers(1, 4), block=st.integers(1, 4))
def test_every_order_is_a_permutation(kind: PatchOrder, blocks: int, block: int) -> None:
    grid = blocks * block
    orders = patch_orders(kind, grid, generators(3), block=block)
    assert orders.shape == (3, grid * grid)
    assert orders.dtype == torch.int64
    for order in orders.tolist():
        assert sorted(order) == list(range(grid * grid))


@given(grid=st.integers(1, 6))
def test_raster_order_reads_row_by_row(grid: int) -> None:
    expected = []
    for y in range(grid):
        for x in range(grid):
            expected.append(y * grid + x)
    assert raster_order(grid).tolist() == expected


@given(blocks=st.integers(1, 4), block=st.integers(1, 4))
def test_blockwise_order_against_loops(blocks: int, block: int) -> None:
    grid, expected = blocks * block, []
    for top in range(0, grid, block):
        for left in range(0, grid, block):
            for y in range(top, top + block):
                for x in range(left, left + block):
                    expected.append(y * grid + x)
    assert blockwise_order(grid, block).tolist() == expected


@given(cells=st.integers(1, 4), stride=st.integers(1, 4))
def test_dilated_order_against_loops(cells: int, stride: int) -> None:
    grid, expected = cells * stride, []
    for first_y in range(stride):
        for first_x in range(stride):
            for y in range(first_y, grid, stride):
                for x in range(first_x, grid, stride):
                    expected.append(y * grid + x)
    assert dilated_order(grid, stride).tolist() == expected


def test_the_block_of_a_batch_of_orders_is_passed_on() -> None:
    """Table 3b has blocks of 8×8 and of 4×4 on the 16×16 grid; 4×4 is the default."""
    for block in (4, 8):
        assert torch.equal(patch_orders("blockwise", 16, generators(1), block=block)[0], blockwise_order(16, block))
        assert torch.equal(patch_orders("dilated", 16, generators(1), block=block)[0], dilated_order(16, block))
    assert torch.equal(patch_orders("blockwise", 16, generators(1))[0], blockwise_order(16, 4))


def test_random_orders_are_uniform_over_all_permutations() -> None:
    """All 4! orders of a 2×2 grid are equally likely."""
    generator = torch.Generator().manual_seed(0)
    seen: dict[tuple[int, ...], int] = {}
    for order in patch_orders("random", 2, [generator] * 2400).tolist():
        seen[tuple(order)] = seen.get(tuple(order), 0) + 1
    assert len(seen) == 24
    assert stats.chisquare(list(seen.values())).pvalue > 1e-3


def test_a_random_order_depends_on_its_own_generator_only() -> None:
    together = patch_orders("random", 4, generators(3))
    for i in range(3):
        alone = patch_orders("random", 4, [torch.Generator().manual_seed(i)])
        assert torch.equal(alone[0], together[i])
    assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize("kind", ["blockwise", "dilated"])
@pytest.mark.parametrize("block", [0, -2, 3, 8])
def test_a_block_that_does_not_divide_the_grid_is_refused(kind: PatchOrder, block: int) -> None:
    with pytest.raises(ValueError, match="does not divide the 4×4 patch grid"):
        patch_orders(kind, 4, generators(1), block=block)


def test_an_unknown_order_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown patch order 'spiral'"):
        patch_orders("spiral", 4, generators(1))  # type: ignore[arg-type]
