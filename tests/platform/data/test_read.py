"""Batches of rows, compared with the data set in memory."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from causalfusion_platform.data.manifest import Manifest
from causalfusion_platform.data.plan import row_order, windows_between
from causalfusion_platform.data.read import Batch, local_batches, read_all
from causalfusion_platform.data.shards import Latents
from causalfusion_platform.data.stream import worker_rows

ROWS = 23
WriteSmall = Callable[..., tuple[Path, Latents, Manifest]]


def row_ids(manifest: Manifest, seed: int, window_rows: int, start: int, stop: int) -> list[int]:
    """Return the rows of the plan, counted over the whole data set, by adding rows up."""
    first, rows = {}, 0
    for shard in manifest.shards:
        for index, count in enumerate(shard.row_groups):
            first[shard.file, index] = rows
            rows += count
    stream = []
    for window in windows_between(manifest, seed, window_rows, start, stop):
        read = [first[group.file, group.index] + row for group in window.groups for row in range(group.rows)]
        stream += [read[position] for position in row_order(window, seed).tolist()]
    return stream


def check_rows(batch: Batch, data: Latents, ids: list[int]) -> None:
    """Compare a batch with the rows of the data set that it should hold."""
    assert batch.row_ids.tolist() == ids
    assert np.array_equal(batch.latents.numpy(), data.latents[ids].astype(np.float32))
    assert np.array_equal(batch.labels.numpy(), data.labels[ids])
    assert (batch.latents.dtype, batch.labels.dtype) == (torch.float32, torch.int64)


@pytest.mark.parametrize("window_rows", [1, 9, 1000])
@pytest.mark.parametrize("batch_size", [1, 5, 8, 50])
def test_batches_are_the_plans_rows(write_small: WriteSmall, window_rows: int, batch_size: int) -> None:
    folder, data, manifest = write_small(ROWS, rows_per_shard=10, rows_per_group=4)
    stop = 3 * ROWS
    batches = list(
        local_batches(folder, manifest, seed=5, window_rows=window_rows, batch_size=batch_size, start=0, stop=stop)
    )
    ids = row_ids(manifest, 5, window_rows, 0, stop)
    assert len(batches) == -(-stop // batch_size)
    for number, batch in enumerate(batches):
        part = range(number * batch_size, min((number + 1) * batch_size, stop))
        assert batch.samples == part
        check_rows(batch, data, ids[part.start : part.stop])
    seen = torch.cat([batch.row_ids for batch in batches]).tolist()
    for epoch in range(3):
        assert Counter(seen[epoch * ROWS : (epoch + 1) * ROWS]) == Counter(range(ROWS))


@pytest.mark.parametrize("start", [8, 24, 32])
def test_a_stream_continues_from_any_batch(write_small: WriteSmall, start: int) -> None:
    """What an interrupted run reads from then on is what it would have read."""
    folder, _, manifest = write_small(ROWS, rows_per_shard=10, rows_per_group=4)

    def batches(first: int) -> list[Batch]:
        return list(
            local_batches(folder, manifest, seed=2, window_rows=9, batch_size=8, start=first, stop=3 * ROWS)
        )

    whole, rest = batches(0)[start // 8 :], batches(start)
    assert len(whole) == len(rest)
    for one, other in zip(whole, rest, strict=True):
        assert one.samples == other.samples
        assert torch.equal(one.row_ids, other.row_ids)
        assert torch.equal(one.latents, other.latents)
        assert torch.equal(one.labels, other.labels)


def test_nothing_is_read_between_equal_ends(write_small: WriteSmall) -> None:
    folder, _, manifest = write_small(ROWS, rows_per_shard=10, rows_per_group=4)
    assert list(local_batches(folder, manifest, seed=0, window_rows=4, batch_size=4, start=7, stop=7)) == []


def test_a_whole_data_set_comes_in_the_order_of_its_rows(write_small: WriteSmall) -> None:
    folder, data, manifest = write_small(ROWS, rows_per_shard=10, rows_per_group=4)
    check_rows(read_all(folder, manifest), data, list(range(ROWS)))


def test_a_page_damaged_after_the_checks_is_not_read(digits_folder: Path, own_folder: Path) -> None:
    """Parquet's page checksums guard what changes between the check of a folder and its reading."""
    folder = Path(shutil.copytree(digits_folder, own_folder / "digits"))
    manifest = Manifest.read(folder)
    path = folder / manifest.shards[0].file
    content = path.read_bytes()

    def read() -> Batch:
        return next(local_batches(folder, manifest, seed=0, window_rows=2000, batch_size=1797, start=0, stop=1797))

    assert len(read().labels) == 1797
    latents = pq.read_metadata(path).row_group(1).column(2)
    start = latents.dictionary_page_offset or latents.data_page_offset
    # The second half of a column's bytes is data: the pages' headers come before it.
    for part in (0.55, 0.7, 0.99):
        damaged = bytearray(content)
        damaged[start + int(part * latents.total_compressed_size)] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(OSError, match=r"(?i)crc|checksum"):
            read()


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("stop", [3 * ROWS, 40])
def test_the_workers_parts_are_the_batch(write_small: WriteSmall, workers: int, stop: int) -> None:
    folder, _, manifest = write_small(ROWS, rows_per_shard=10, rows_per_group=4)
    uneven = 0
    for batch in local_batches(folder, manifest, seed=0, window_rows=9, batch_size=8, start=0, stop=stop):
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
