"""Chosen rows: a seeded part, so many of each class, and nothing read but their row groups."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from causalfusion import draws
from causalfusion_platform.data import chosen_rows, passes
from causalfusion_platform.data.chosen_rows import ChosenRows, choose_rows
from causalfusion_platform.data.manifest import Manifest
from causalfusion_platform.data.shards import Rows

ROWS = 37
WriteSmall = Callable[..., tuple[Path, Rows, Manifest]]


@pytest.fixture
def shards(write_small: WriteSmall) -> tuple[Path, Rows, Manifest]:
    """37 rows of three classes in five shards, whose row groups have up to 3 rows."""
    return write_small(ROWS, rows_per_shard=8, rows_per_group=3)


def read(rows: ChosenRows, size: int) -> tuple[list[int], torch.Tensor, list[int]]:
    batches = list(rows.batches(size))
    assert all(len(batch) == size for batch in batches[:-1])
    assert 0 < len(batches[-1]) <= size
    assert [batch.samples.start for batch in batches] == [size * place for place in range(len(batches))]
    ids = [row for batch in batches for row in batch.row_ids.tolist()]
    labels = [label for batch in batches for label in batch.labels.tolist()]
    return ids, torch.cat([batch.latents for batch in batches]), labels


@pytest.mark.parametrize("size", [1, 2, 100])
def test_all_rows_in_the_order_of_the_shards(shards: tuple[Path, Rows, Manifest], size: int) -> None:
    folder, data, manifest = shards
    ids, latents, labels = read(choose_rows(folder, manifest, 1000), size)
    assert ids == list(range(ROWS))
    assert labels == data.labels.tolist()
    np.testing.assert_array_equal(latents.numpy(), data.mean.astype(np.float32))


def test_a_part_is_drawn_by_the_seed(shards: tuple[Path, Rows, Manifest]) -> None:
    folder, data, manifest = shards
    drawn = [choose_rows(folder, manifest, 10, seed=seed) for seed in (0, 0, 1)]
    ids, latents, labels = read(drawn[0], 4)
    assert len(ids) == len(set(ids)) == len(drawn[0]) == 10
    assert ids == sorted(ids) == drawn[0].places.tolist() == drawn[1].places.tolist()
    assert ids != drawn[2].places.tolist()
    assert labels == drawn[0].labels.tolist() == data.labels[ids].tolist()
    np.testing.assert_array_equal(latents.numpy(), data.mean[ids].astype(np.float32))


def test_a_larger_part_holds_the_smaller(shards: tuple[Path, Rows, Manifest]) -> None:
    folder, _, manifest = shards
    for few, more in (
        (choose_rows(folder, manifest, 5), choose_rows(folder, manifest, 9)),
        (choose_rows(folder, manifest, 0, per_class=2), choose_rows(folder, manifest, 0, per_class=4)),
    ):
        assert set(few.places) < set(more.places)


def test_the_first_of_each_class(shards: tuple[Path, Rows, Manifest]) -> None:
    """In the seeded order of all rows, by a loop over it."""
    folder, data, manifest = shards
    order = torch.randperm(ROWS, generator=draws.stream(3, "probe rows")).tolist()
    expected: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for row in order:
        if len(expected[int(data.labels[row])]) < 4:
            expected[int(data.labels[row])].append(row)
    found = choose_rows(folder, manifest, 0, per_class=4, seed=3)
    assert found.places.tolist() == sorted(row for rows in expected.values() for row in rows)
    everything = choose_rows(folder, manifest, 0, per_class=1000)
    assert everything.places.tolist() == list(range(ROWS))


def test_row_groups_without_a_chosen_row_are_not_read(
    shards: tuple[Path, Rows, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _, manifest = shards
    rows = choose_rows(folder, manifest, 3)
    opened: list[tuple[str, int]] = []
    own = passes.read_group

    def counted(folder: Path, shard: Any, group: int, columns: Any) -> Any:
        opened.append((shard.file, group))
        return own(folder, shard, group, columns)

    monkeypatch.setattr(chosen_rows, "read_group", counted)
    ids, _, _ = read(rows, 10)
    expected = {(f"shard-{row // 8:05d}-of-00005.parquet", row % 8 // 3) for row in ids}
    assert len(opened) == len(expected)
    assert set(opened) == expected
