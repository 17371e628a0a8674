"""Batches of rows, compared with the data set in memory."""

from __future__ import annotations

import itertools
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tests.platform.data.damage import put, rewrite

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.data.classes import read_rows
from causalfusion_platform.data.manifest import Manifest
from causalfusion_platform.data.order import row_order, windows_between
from causalfusion_platform.data.read import Batch, Dataset, local_batches, read_all, read_window, worker_rows
from causalfusion_platform.data.shards import Rows
from causalfusion_platform.data.validate import open_shards

ROWS = 23
WriteSmall = Callable[..., tuple[Path, Rows, Manifest]]


def row_ids(data: Dataset, start: int, stop: int) -> list[int]:
    """Return the rows of the plan, counted over the whole data set, by adding rows up."""
    first, rows = {}, 0
    for shard in data.manifest.shards:
        for index, count in enumerate(shard.row_groups):
            first[shard.file, index] = rows
            rows += count
    stream = []
    for window in windows_between(data.manifest, data.seed, data.window_rows, start, stop):
        read = [first[group.file, group.index] + row for group in window.groups for row in range(group.rows)]
        stream += [read[position] for position in row_order(window, data.seed).tolist()]
    return stream


def check_rows(batch: Batch, rows: Rows, ids: list[int]) -> None:
    """Compare a batch with the rows of the data set that it should hold."""
    assert batch.row_ids.tolist() == ids
    assert np.array_equal(batch.latents.numpy(), rows.mean[ids].astype(np.float32))
    assert np.array_equal(batch.labels.numpy(), rows.labels[ids])
    assert (batch.latents.dtype, batch.labels.dtype) == (torch.float32, torch.int64)


def batches_of(data: Dataset, start: int, stop: int, batch_size: int = 8) -> list[Batch]:
    return list(local_batches(data, batch_size=batch_size, start=start, stop=stop))


def check_same(ones: list[Batch], others: list[Batch]) -> None:
    assert len(ones) == len(others)
    for one, other in zip(ones, others, strict=True):
        assert one.samples == other.samples
        assert torch.equal(one.row_ids, other.row_ids)
        assert torch.equal(one.latents, other.latents)
        assert torch.equal(one.labels, other.labels)


@pytest.mark.parametrize("window_rows", [1, 9, 1000])
@pytest.mark.parametrize("batch_size", [1, 5, 8, 50])
def test_batches_are_the_plans_rows(write_small: WriteSmall, window_rows: int, batch_size: int) -> None:
    folder, rows, manifest = write_small(ROWS, rows_per_shard=10, rows_per_group=4)
    data = Dataset(folder, manifest, 5, window_rows)
    stop = 3 * ROWS
    batches = batches_of(data, 0, stop, batch_size)
    ids = row_ids(data, 0, stop)
    assert len(batches) == -(-stop // batch_size)
    for number, batch in enumerate(batches):
        part = range(number * batch_size, min((number + 1) * batch_size, stop))
        assert batch.samples == part
        check_rows(batch, rows, ids[part.start : part.stop])
    seen = torch.cat([batch.row_ids for batch in batches]).tolist()
    for epoch in range(3):
        assert Counter(seen[epoch * ROWS : (epoch + 1) * ROWS]) == Counter(range(ROWS))


@pytest.mark.parametrize("start", [8, 24, 32])
@pytest.mark.parametrize(("posterior", "flip"), itertools.product([False, True], repeat=2))
def test_a_stream_continues_from_any_batch(
    write_small: WriteSmall, start: int, posterior: bool, flip: bool
) -> None:
    """What an interrupted run reads from then on is what it would have read, and drawn."""
    folder, _, manifest = write_small(ROWS, rows_per_shard=10, rows_per_group=4, posterior=True, flip=True)
    data = Dataset(folder, manifest, 2, 9, posterior, flip)
    check_same(batches_of(data, start, 3 * ROWS), batches_of(data, 0, 3 * ROWS)[start // 8 :])


@pytest.mark.parametrize("batch_size", [1, 5, 23])
def test_rows_and_draws_do_not_depend_on_the_batch_size(write_small: WriteSmall, batch_size: int) -> None:
    folder, _, manifest = write_small(ROWS, rows_per_shard=10, rows_per_group=4, posterior=True, flip=True)
    data = Dataset(folder, manifest, 2, 9, True, True)
    (whole,) = batches_of(data, 0, 50, 50)
    parts = batches_of(data, 0, 50, batch_size)
    assert torch.equal(torch.cat([part.row_ids for part in parts]), whole.row_ids)
    assert torch.equal(torch.cat([part.latents for part in parts]), whole.latents)


def test_row_groups_that_are_not_needed_are_not_read(
    write_small: WriteSmall, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For every part of an epoch: each row group that holds one of its rows is read once, the others never."""
    folder, _, manifest = write_small(ROWS, rows_per_shard=10, rows_per_group=4)
    data = Dataset(folder, manifest, 2, 12)
    group_of_row = [(row // 10, row % 10 // 4) for row in range(ROWS)]  # shards of 4 + 4 + 2 rows
    ids = row_ids(data, 0, ROWS)
    spared = 0
    for start, stop in itertools.combinations(range(ROWS + 1), 2):
        read: list[tuple[str, int]] = []

        class Counting(pq.ParquetFile):  # type: ignore[misc]
            def __init__(self, path: Path, read: list[tuple[str, int]] = read, **options: Any) -> None:
                super().__init__(path, **options)
                self.name, self.groups_read = path.name, read

            def read_row_group(self, index: int, *args: Any, **options: Any) -> pa.Table:
                self.groups_read.append((self.name, index))
                return super().read_row_group(index, *args, **options)

            def read_row_groups(self, groups: list[int], *args: Any, **options: Any) -> pa.Table:
                self.groups_read.extend((self.name, index) for index in groups)
                return super().read_row_groups(groups, *args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(pq, "ParquetFile", Counting)
            batches_of(data, start, stop)
        needed = {group_of_row[row] for row in ids[start:stop]}
        assert sorted(read) == sorted((manifest.shards[shard].file, group) for shard, group in needed)
        covering = {group for window in data.windows(start, stop) for group in window.groups}
        spared += len(covering) - len(needed)
    assert spared > 100


def test_only_columns_that_are_drawn_from_are_read(write_small: WriteSmall) -> None:
    folder, _, manifest = write_small(ROWS, rows_per_shard=10, rows_per_group=4, posterior=True, flip=True)
    columns = {
        (posterior, flip): Dataset(folder, manifest, 0, 9, posterior, flip).columns[2:]
        for posterior, flip in itertools.product([False, True], repeat=2)
    }
    assert columns[False, False] == ["mean"]
    assert columns[True, False] == ["mean", "std"]
    assert columns[False, True] == ["mean", "mean_flip"]
    assert columns[True, True] == ["mean", "std", "mean_flip", "std_flip"]


def test_nothing_is_read_between_equal_ends(write_small: WriteSmall) -> None:
    folder, _, manifest = write_small(ROWS, rows_per_shard=10, rows_per_group=4)
    assert batches_of(Dataset(folder, manifest, 0, 4), 7, 7) == []


def test_a_whole_data_set_comes_in_the_order_of_its_rows(write_small: WriteSmall) -> None:
    """As posterior means, whatever else the shards hold."""
    folder, rows, manifest = write_small(ROWS, rows_per_shard=10, rows_per_group=4, posterior=True, flip=True)
    check_rows(read_all(folder, manifest), rows, list(range(ROWS)))


def test_a_page_damaged_after_the_checks_is_not_read(digits_folder: Path, own_folder: Path) -> None:
    """Parquet's page checksums guard what changes between the check of a folder and its reading."""
    folder = Path(shutil.copytree(digits_folder, own_folder / "digits"))
    data = Dataset(folder, Manifest.read(folder), 0, 2000)
    path = folder / data.manifest.shards[0].file
    content = path.read_bytes()
    assert len(batches_of(data, 0, 1797, 1797)[0].labels) == 1797
    means = pq.read_metadata(path).row_group(1).column(3)
    # The second half of a column's bytes is data: the pages' headers come before it.
    for part in (0.55, 0.7, 0.99):
        damaged = bytearray(content)
        damaged[means.data_page_offset + int(part * means.total_compressed_size)] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"(?i)crc|checksum") as caught:
            batches_of(data, 0, 1797)
        assert str(caught.value).startswith(f"shard {path} cannot be read: row group 1: ")
        assert f"causalfusion data verify {folder}" in str(caught.value)


@pytest.mark.parametrize("name", ["mean", "std", "mean_flip", "std_flip"])
def test_latents_that_are_not_finite_are_not_trained_on(write_small: WriteSmall, name: str) -> None:
    """The manifest has the hash of such a shard, and its pages have checksums."""
    folder, _, _ = write_small(ROWS, rows_per_shard=10, rows_per_group=4, posterior=True, flip=True)
    file = rewrite(folder, 1, put(name, 5, np.nan))
    manifest = open_shards(folder).manifest
    data = Dataset(folder, manifest, 0, 4, sample_posterior=True, flip=True)
    message = rf"{file} holds NaN or infinity: {name} of row id 15\n.*data verify {folder} --quarantine"
    with pytest.raises(UserError, match=message):
        batches_of(data, 0, ROWS)
    if name == "mean":
        with pytest.raises(UserError, match=message):
            read_all(folder, manifest)
        with pytest.raises(UserError, match=f"{file} holds NaN or infinity: mean in row group 1\n"):
            read_rows(folder, manifest, [15])


def test_a_shard_that_is_gone_is_named(write_small: WriteSmall) -> None:
    folder, _, manifest = write_small(ROWS, rows_per_shard=10, rows_per_group=4)
    path = folder / manifest.shards[1].file
    path.unlink()
    with pytest.raises(UserError, match=re.escape(f"shard {path} cannot be read: ")):
        batches_of(Dataset(folder, manifest, 0, 9), 0, ROWS)


@pytest.mark.parametrize("bit", [0, 7])
def test_damage_anywhere_is_reported_or_harmless(write_small: WriteSmall, bit: int) -> None:
    """A bit flipped at any place of a shard changes no row silently, and never ends in another exception."""
    folder, _, manifest = write_small(40, rows_per_shard=40, rows_per_group=20, posterior=True, flip=True)
    data = Dataset(folder, manifest, 3, 40, True, True)
    (window,) = data.windows(0, 40)
    expected = read_window(data, window)
    path = folder / manifest.shards[0].file
    content = path.read_bytes()
    harmless = 0
    for place in range(bit, len(content), 13):
        damaged = bytearray(content)
        damaged[place] ^= 1 << bit
        path.write_bytes(damaged)
        try:
            found = read_window(data, window)
        except UserError as error:
            assert str(error).startswith(f"shard {path} cannot be read: row group ")
        else:
            assert all(np.array_equal(found[name], expected[name]) for name in expected)
            harmless += 1
    assert 0.1 < harmless / len(range(bit, len(content), 13)) < 0.4  # keys, statistics and paddings


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("stop", [3 * ROWS, 40])
def test_the_workers_parts_are_the_batch(write_small: WriteSmall, workers: int, stop: int) -> None:
    folder, _, manifest = write_small(ROWS, rows_per_shard=10, rows_per_group=4)
    uneven = 0
    for batch in batches_of(Dataset(folder, manifest, 0, 9), 0, stop):
        size = len(batch.labels)
        parts = [worker_rows(size, rank, workers) for rank in range(workers)]
        assert torch.equal(torch.cat([batch.latents[part] for part in parts]), batch.latents)
        assert [row for part in parts for row in batch.row_ids[part].tolist()] == batch.row_ids.tolist()
        uneven += size % workers > 0
    assert uneven == (1 if stop == 3 * ROWS and workers > 1 else 0)


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 7])
def test_the_workers_parts_are_as_equal_as_can_be(workers: int) -> None:
    for size in range(30):
        parts = [range(size)[worker_rows(size, rank, workers)] for rank in range(workers)]
        assert [row for part in parts for row in part] == list(range(size))
        assert {len(part) for part in parts} <= {size // workers, -(-size // workers)}
