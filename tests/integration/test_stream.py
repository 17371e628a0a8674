"""Ray Data streams the same global batches to any number of workers, each row exactly once per epoch."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from causalfusion_platform.data.digits import write_digits
from causalfusion_platform.data.manifest import Manifest
from causalfusion_platform.data.read import Batch, local_batches
from causalfusion_platform.data.stream import StreamSpec, start_feeder, worker_batches

ROWS = 1797
BATCH = 120


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits in shards of 700 rows (the last: 397) and row groups of 90 rows."""
    folder = tmp_path_factory.mktemp("uneven")
    write_digits(folder, rows_per_shard=700, rows_per_group=90)
    return folder


def stream(folder: Path, start: int, stop: int, workers: int) -> list[list[Batch]]:
    """Return what each worker gets of rows start … stop − 1."""
    manifest = Manifest.read(folder)
    spec = StreamSpec(folder, manifest, 7, 400, BATCH, start, stop, 0.25, 2, 4)
    feeder = start_feeder(spec, workers)
    with ThreadPoolExecutor(workers) as threads:
        return list(threads.map(lambda rank: list(worker_batches(feeder, spec, rank, workers)), range(workers)))


@pytest.mark.ray
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_global_batches_do_not_depend_on_the_worker_count(uneven: Path, ray_cluster: None, workers: int) -> None:
    """Two epochs and a bit, begun in the middle of the first one; the reference reads in this process."""
    start, stop = 5 * BATCH, 2 * ROWS + BATCH
    parts = stream(uneven, start, stop, workers)
    manifest = Manifest.read(uneven)
    expected = list(
        local_batches(uneven, manifest, seed=7, window_rows=400, batch_size=BATCH, start=start, stop=stop)
    )
    assert all(len(part) == len(expected) for part in parts)
    for reference, *mine in zip(expected, *parts, strict=True):
        assert torch.equal(torch.cat([batch.row_ids for batch in mine]), reference.row_ids)
        assert torch.equal(torch.cat([batch.latents for batch in mine]), reference.latents)
        assert torch.equal(torch.cat([batch.labels for batch in mine]), reference.labels)
        assert [sample for batch in mine for sample in batch.samples] == list(reference.samples)


@pytest.mark.ray
def test_each_row_is_seen_exactly_once_per_epoch_across_workers(uneven: Path, ray_cluster: None) -> None:
    """Three epochs over two workers: cut at the epochs' borders, each part holds every row id once."""
    parts = stream(uneven, 0, 3 * ROWS, 2)
    ids = torch.cat([batch.row_ids for pair in zip(*parts, strict=True) for batch in pair])
    epochs = [ids[epoch * ROWS : (epoch + 1) * ROWS].tolist() for epoch in range(3)]
    for epoch in epochs:
        assert Counter(epoch) == Counter(range(ROWS))
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.ray
def test_a_damaged_shard_stops_the_workers(tmp_path: Path, ray_cluster: None) -> None:
    """A byte flipped after the checks at start fails Parquet's page checksum in the reading task."""
    write_digits(tmp_path, rows_per_shard=2000, rows_per_group=2000)
    (shard,) = tmp_path.glob("*.parquet")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(bytes(content))
    with pytest.raises(Exception, match=r"(?i)crc|checksum"):
        stream(tmp_path, 0, BATCH, 1)
