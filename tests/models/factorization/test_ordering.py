"""Patch orders (Table 3b)."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from causalfusion.config import PatchOrder
from causalfusion.factorization.ordering import blockwise_order, dilated_order, patch_orders, raster_order


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(count)]


@pytest.mark.parametrize("kind", get_args(PatchOrder))
@given(down=st.integers(1, 4), across=st.integers(1, 4), block=st.integers(1, 4))
def test_every_order_is_a_permutation(kind: PatchOrder, down: int, across: int, block: int) -> None:
    rows, columns = down * block, across * block
    orders = patch_orders(kind, rows, generators(3), block=block, columns=columns)
    assert orders.shape == (3, rows * columns)
    assert orders.dtype == torch.int64
    for order in orders.tolist():
        assert sorted(order) == list(range(rows * columns))


@given(rows=st.integers(1, 6), columns=st.integers(1, 6))
def test_raster_order_reads_row_by_row(rows: int, columns: int) -> None:
    expected = []
    for y in range(rows):
        for x in range(columns):
            expected.append(y * columns + x)
    assert raster_order(rows, columns).tolist() == expected


@given(down=st.integers(1, 4), across=st.integers(1, 4), block=st.integers(1, 4))
def test_blockwise_order_against_loops(down: int, across: int, block: int) -> None:
    rows, columns, expected = down * block, across * block, []
    for top in range(0, rows, block):
        for left in range(0, columns, block):
            for y in range(top, top + block):
                for x in range(left, left + block):
                    expected.append(y * columns + x)
    assert blockwise_order(rows, block, columns).tolist() == expected


@given(down=st.integers(1, 4), across=st.integers(1, 4), stride=st.integers(1, 4))
def test_dilated_order_against_loops(down: int, across: int, stride: int) -> None:
    rows, columns, expected = down * stride, across * stride, []
    for first_y in range(stride):
        for first_x in range(stride):
            for y in range(first_y, rows, stride):
                for x in range(first_x, columns, stride):
                    expected.append(y * columns + x)
    assert dilated_order(rows, stride, columns).tolist() == expected


def test_a_grid_is_square_unless_said_otherwise() -> None:
    assert torch.equal(raster_order(4), raster_order(4, 4))
    assert torch.equal(blockwise_order(4, 2), blockwise_order(4, 2, 4))
    assert torch.equal(dilated_order(4, 2), dilated_order(4, 2, 4))
    assert patch_orders("random", 3, generators(2)).shape == (2, 9)


def test_orders_of_a_two_by_four_grid() -> None:
    """0 1 2 3 over 4 5 6 7: blocks of 2×2, and every second patch of every second row."""
    assert patch_orders("raster", 2, generators(1), columns=4).tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]]
    assert patch_orders("blockwise", 2, generators(1), block=2, columns=4).tolist() == [[0, 1, 4, 5, 2, 3, 6, 7]]
    assert patch_orders("dilated", 2, generators(1), block=2, columns=4).tolist() == [[0, 2, 1, 3, 4, 6, 5, 7]]


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


@pytest.mark.parametrize(("rows", "columns"), [(4, 6), (6, 4)])
def test_a_block_must_divide_rows_and_columns(rows: int, columns: int) -> None:
    for kind in ("blockwise", "dilated"):
        with pytest.raises(ValueError, match=f" 4 does not divide the {rows}×{columns} patch grid"):
            patch_orders(kind, rows, generators(1), block=4, columns=columns)


def test_no_samples_have_no_orders() -> None:
    assert patch_orders("random", 4, []).shape == patch_orders("raster", 4, []).shape == (0, 16)


def test_an_unknown_order_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown patch order 'spiral'"):
        patch_orders("spiral", 4, generators(1))  # type: ignore[arg-type]
