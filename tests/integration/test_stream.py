"""Ray Data streams the same global batches to any number of workers, each row exactly once per epoch."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from ray.exceptions import RayError

from causalfusion import PRESETS, DiffusionConfig, Draws, ObjectiveConfig, draw
from causalfusion_platform.data.digits import digits, write_digits
from causalfusion_platform.data.manifest import AutoencoderId, Description, SourceId
from causalfusion_platform.data.read import Batch, Dataset, local_batches
from causalfusion_platform.data.shards import write_shards
from causalfusion_platform.data.stream import StreamSpec, start_feeder, worker_batches

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
    """Return each worker's batches of rows start … stop − 1."""
    spec = StreamSpec(data, BATCH, start, stop, 0.25, 2, 4)
    feeder = start_feeder(spec, workers)
    return [worker_batches(feeder, spec, rank, workers) for rank in range(workers)]


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


def local(data: Dataset, start: int, stop: int) -> list[Batch]:
    return list(local_batches(data, batch_size=BATCH, start=start, stop=stop))


@pytest.mark.ray
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_global_batches_do_not_depend_on_the_worker_count(uneven: Dataset, ray_cluster: None, workers: int) -> None:
    """Two epochs and a bit, begun in the middle of the first one; the reference reads in this process."""
    start, stop = 5 * BATCH, 2 * ROWS + BATCH
    check_global_batches(stream(uneven, start, stop, workers), local(uneven, start, stop))


@pytest.mark.ray
@pytest.mark.parametrize(("posterior", "flip"), [(True, False), (False, True), (False, False)])
def test_the_same_for_other_draws(uneven: Dataset, ray_cluster: None, posterior: bool, flip: bool) -> None:
    data = dataclasses.replace(uneven, sample_posterior=posterior, flip=flip)
    check_global_batches(stream(data, 0, 4 * BATCH, 2), local(data, 0, 4 * BATCH))


@pytest.mark.ray
def test_each_row_is_seen_exactly_once_per_epoch_across_workers(uneven: Dataset, ray_cluster: None) -> None:
    """Three epochs over two workers: cut at the epochs' borders, each part holds every row id once."""
    parts = stream(uneven, 0, 3 * ROWS, 2)
    ids = torch.cat([batch.row_ids for pair in zip(*parts, strict=True) for batch in pair])
    epochs = [ids[epoch * ROWS : (epoch + 1) * ROWS].tolist() for epoch in range(3)]
    for epoch in epochs:
        assert Counter(epoch) == Counter(range(ROWS))
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.ray
def test_a_run_continues_with_other_numbers_of_workers(uneven: Dataset, ray_cluster: None) -> None:
    """Two workers, then four, then one: the rows trained on are all of the state that is kept.

    Each part reads ahead of what is consumed; what was read and not consumed comes again. The parts end in the
    middle of the first epoch, and of the second.
    """
    stop = 2 * ROWS
    consumed, expected = 0, local(uneven, 0, stop)
    for workers, batches in ((2, 7), (4, 11), (1, None)):
        parts = stream(uneven, consumed, stop, workers, batches)
        first = consumed // BATCH
        check_global_batches(parts, expected[first:] if batches is None else expected[first : first + batches])
        consumed += sum(len(batch.labels) for part in parts for batch in part)
    assert consumed == stop


@pytest.mark.ray
def test_noise_and_times_do_not_depend_on_the_worker_count(uneven: Dataset, ray_cluster: None) -> None:
    """What is drawn from `Batch.samples` for the workers' rows is what is drawn for the whole batch."""
    model, objective, diffusion = PRESETS["tiny"], ObjectiveConfig(), DiffusionConfig()

    def drawn(step: int, batch: Batch) -> Draws:
        return draw(model, objective, diffusion, seed=3, step=step, samples=batch.samples)

    expected = local(uneven, 0, 3 * BATCH)
    wholes = [drawn(step, batch) for step, batch in enumerate(expected)]
    for workers in (2, 4):
        for step, mine in enumerate(zip(*stream(uneven, 0, 3 * BATCH, workers), strict=True)):
            parts = [drawn(step, batch) for batch in mine]
            whole = wholes[step]
            assert all(part.sizes == whole.sizes for part in parts)
            for name in ("orders", "times", "noise", "dropped"):
                together = torch.cat([getattr(part, name) for part in parts])
                assert torch.equal(together, getattr(whole, name)), name


@pytest.mark.ray
@pytest.mark.parametrize("kept", [None, 1000], ids=["flipped", "truncated"])
def test_a_damaged_shard_stops_the_workers(tmp_path: Path, ray_cluster: None, kept: int | None) -> None:
    """Damaged after the checks at start: the reading task's error names the shard."""
    manifest = write_digits(tmp_path, rows_per_shard=2000, rows_per_group=2000)
    (shard,) = tmp_path.glob("*.parquet")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content[:kept])
    with pytest.raises(RayError, match=f"shard {shard} cannot be read: row group 0: "):
        stream(Dataset(tmp_path, manifest, 7, 400), 0, BATCH, 2)
