"""The order of rows: each once per epoch, a pure function of its arguments."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from causalfusion_platform.data.manifest import AutoencoderId, Manifest, Shard, SourceId
from causalfusion_platform.data.order import Window, epoch_windows, row_order, windows_between

Row = tuple[str, int, int]
"""A row by its file, row group and place in the group."""

layouts = st.lists(st.lists(st.integers(1, 7), min_size=1, max_size=5), min_size=1, max_size=4)


def manifest_of(layout: list[list[int]]) -> Manifest:
    """Return a manifest of shards with these rows in their row groups."""
    shards = [
        Shard(file=f"{index}.parquet", rows=sum(groups), row_groups=groups, bytes=1, sha256="0" * 64)
        for index, groups in enumerate(layout)
    ]
    rows = sum(shard.rows for shard in shards)
    return Manifest(
        source=SourceId(kind="folders", location="", items=rows, digest=""),
        autoencoder=AutoencoderId(name="identity", scale=1),
        shape=(1, 1, 1),
        class_names=["a"],
        rows=rows,
        shards=shards,
    )


def rows_of(manifest: Manifest) -> list[Row]:
    return [
        (shard.file, index, row)
        for shard in manifest.shards
        for index, rows in enumerate(shard.row_groups)
        for row in range(rows)
    ]


def taken(windows: Iterable[Window], seed: int) -> list[Row]:
    """Read the windows by hand: their row groups one after another, then the rows in the plan's order."""
    rows: list[Row] = []
    for window in windows:
        read = [(group.file, group.index, row) for group in window.groups for row in range(group.rows)]
        rows += [read[position] for position in row_order(window, seed).tolist()]
    return rows


@given(layouts, st.integers(1, 60), st.integers(0, 3))
def test_every_epoch_has_every_row_once(layout: list[list[int]], window_rows: int, seed: int) -> None:
    manifest = manifest_of(layout)
    stream = taken(windows_between(manifest, seed, window_rows, 0, 3 * manifest.rows), seed)
    assert len(stream) == 3 * manifest.rows
    for epoch in range(3):
        part = stream[epoch * manifest.rows : (epoch + 1) * manifest.rows]
        assert Counter(part) == Counter(rows_of(manifest))


@given(layouts, st.integers(1, 60), st.data())
def test_any_part_is_a_slice_of_the_stream(layout: list[list[int]], window_rows: int, data: st.DataObject) -> None:
    manifest = manifest_of(layout)
    end = 3 * manifest.rows
    stream = taken(windows_between(manifest, 1, window_rows, 0, end), 1)
    start = data.draw(st.integers(0, end))
    stop = data.draw(st.integers(0, end))
    windows = list(windows_between(manifest, 1, window_rows, start, stop))
    assert taken(windows, 1) == stream[start:stop]
    # Draws are keyed by positions: a window that is cut keeps those of its rows.
    for window in windows:
        first = window.position
        assert taken([window], 1) == stream[first : first + window.stop - window.start]
    positions = [window.position + row for window in windows for row in range(window.stop - window.start)]
    assert positions == list(range(start, stop))


@given(layouts, st.integers(1, 60))
def test_windows_hold_enough_rows_and_no_more(layout: list[list[int]], window_rows: int) -> None:
    """A window is closed by the row group that fills it; only the last may have too few rows."""
    windows = epoch_windows(manifest_of(layout), 0, 0, window_rows)
    assert [window.index for window in windows] == list(range(len(windows)))
    for window in windows:
        before_last = sum(group.rows for group in window.groups[:-1])
        assert before_last < window_rows
        assert (window.start, window.stop) == (0, window.rows)
    for window in windows[:-1]:
        assert window.rows >= window_rows


@pytest.mark.parametrize("window_rows", [1, 40, 1000])
def test_epochs_and_seeds_have_orders_of_their_own(window_rows: int) -> None:
    manifest = manifest_of([[10] * 10] * 2)
    orders = [
        taken(epoch_windows(manifest, seed, epoch, window_rows), seed) for seed in range(3) for epoch in range(3)
    ]
    for one, other in itertools.combinations(orders, 2):
        assert one != other
    # Shuffled all over: two orders agree by chance only, in one of 200 places on average.
    for one, other in itertools.combinations([rows_of(manifest), *orders], 2):
        assert sum(a == b for a, b in zip(one, other, strict=True)) < 12


def test_windows_of_one_epoch_are_not_permuted_alike() -> None:
    windows = epoch_windows(manifest_of([[20]] * 4), 0, 0, 20)
    orders = {tuple(row_order(window, 0).tolist()) for window in windows}
    assert len(orders) == 4


def test_the_plan_depends_on_its_arguments_alone() -> None:
    manifest = manifest_of([[3, 4], [5]])
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = taken(windows_between(manifest, 0, 4, 5, 30), 0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    copy = Manifest.model_validate_json(manifest.model_dump_json())
    assert taken(windows_between(copy, 0, 4, 5, 30), 0) == first


def test_a_plan_is_never_changed() -> None:
    """An interrupted run continues with the rows it has not seen: this order must never change."""
    stream = taken(windows_between(manifest_of([[2, 1], [3]]), 17, 3, 0, 12), 17)
    first = ["100", "102", "101", "000", "001", "010"]  # file, row group, row
    second = ["101", "102", "100", "010", "001", "000"]
    assert [f"{file[0]}{group}{row}" for file, group, row in stream] == first + second


def test_nothing_lies_between_equal_ends() -> None:
    assert list(windows_between(manifest_of([[3]]), 0, 2, 4, 4)) == []
