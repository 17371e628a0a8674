"""Ray Data streams the same global batches to any number of workers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from causalfusion_platform.data.digits import digits
from causalfusion_platform.data.manifest import AutoencoderId, Description, SourceId
from causalfusion_platform.data.read import Batch, Dataset, local_batches
from causalfusion_platform.data.shards import write_shards
from causalfusion_platform.data.stream import StreamSpec, make_coordinator, worker_batches

ROWS = 1797
BATCH = 120

Parts = list[list[Batch]]
"""What each worker gets."""


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The digits in shards of 700 rows (the last: 397) and row groups of 90 rows, made uncertain and mirrored."""
    folder = tmp_path_factory.mktemp("uneven")
    rows = digits()
    std = (0.125 + 0.125 * rows.mean**2).astype(np.float16)
    rows = dataclasses.replace(rows, std=std, mean_flip=rows.mean[..., ::-1], std_flip=std[..., ::-1])
    description = Description(
        source=SourceId(kind="bundled", location="digits", items=ROWS, digest=""),
        autoencoder=AutoencoderId(name="AutoencoderKL", scale=1.0),
        shape=rows.mean.shape[1:],
        posterior=True,
        flip=True,
        class_names=[str(digit) for digit in range(10)],
    )
    manifest = write_shards(rows, description, folder, rows_per_shard=700, rows_per_group=90)
    return Dataset(folder, manifest, 7, 400, sample_posterior=True, flip=True)


def begin(data: Dataset, start: int, stop: int, workers: int) -> list[Iterator[Batch]]:
    """Return each worker's batches of rows start … stop − 1. Reading starts with the first request for a batch."""
    spec = StreamSpec(data, BATCH, start, stop, 0.25, 2, 4)
    coordinator = make_coordinator(spec, workers)
    return [worker_batches(coordinator, spec, rank, workers) for rank in range(workers)]


def stream(data: Dataset, start: int, stop: int, workers: int, batches: int | None = None) -> Parts:
    """Return what each worker gets of rows start … stop − 1, or the first few batches of it."""

    def take(part: Iterator[Batch]) -> list[Batch]:
        return list(part) if batches is None else [next(part) for _ in range(batches)]

    with ThreadPoolExecutor(workers) as threads:
        return list(threads.map(take, begin(data, start, stop, workers)))


def check_global_batches(parts: Parts, expected: list[Batch]) -> None:
    """Compare the workers' parts, one after another, with whole batches."""
    assert all(len(part) == len(expected) for part in parts)
    for reference, *mine in zip(expected, *parts, strict=True):
        assert torch.equal(torch.cat([batch.row_ids for batch in mine]), reference.row_ids)
        assert torch.equal(torch.cat([batch.latents for batch in mine]), reference.latents)
        assert torch.equal(torch.cat([batch.labels for batch in mine]), reference.labels)
        assert [sample for batch in mine for sample in batch.samples] == list(reference.samples)
        assert {len(batch.labels) for batch in mine} <= {
            len(reference.labels) // len(mine),
            -(-len(reference.labels) // len(mine)),
        }


@pytest.mark.ray
def test_global_batches_do_not_depend_on_the_worker_count(uneven: Dataset, ray_cluster: None) -> None:
    """Two workers, then four, then one: the rows trained on are all of the state that is kept.

    Each part reads ahead of what is consumed. Rows that were read and not consumed come again. The parts end in the
    middle of the first epoch, of the second, and of the third. The reference reads in this process.
    """
    stop = 2 * ROWS + BATCH // 2
    consumed, expected = 0, list(local_batches(uneven, batch_size=BATCH, start=0, stop=stop))
    for workers, batches in ((2, 7), (4, 11), (1, None)):
        parts = stream(uneven, consumed, stop, workers, batches)
        first = consumed // BATCH
        check_global_batches(parts, expected[first:] if batches is None else expected[first : first + batches])
        consumed += sum(len(batch.labels) for part in parts for batch in part)
    assert consumed == stop
