"""Batches of a data set in the memory of each worker, compared with those that one process reads."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tests.platform.data.captioned import captions_of, write_captioned

from causalfusion.text.tokenizer import train_bpe
from causalfusion_platform.config.augment import AugmentConfig
from causalfusion_platform.config.errors import UserError
from causalfusion_platform.data.augment.transforms import AugmentLatents
from causalfusion_platform.data.caption_tokens import DrawCaptions
from causalfusion_platform.data.in_memory import batches_in_memory
from causalfusion_platform.data.manifest import Manifest
from causalfusion_platform.data.read import Batch, Columns, Dataset, local_batches
from causalfusion_platform.data.shards import Rows

ROWS = 23
WriteSmall = Callable[..., tuple[Path, Rows, Manifest]]


def parts(data: Dataset, start: int, stop: int, batch: int, workers: int, **more: Any) -> list[tuple[Any, ...]]:
    """Return the parts of each global batch, by rank."""
    every = [
        batches_in_memory(data, batch_size=batch, start=start, stop=stop, rank=rank, num_workers=workers, **more)
        for rank in range(workers)
    ]
    return list(zip(*every, strict=True))


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("window_rows", [1, 9, 1000])
@pytest.mark.parametrize(("batch", "start"), [(4, 0), (4, 31), (50, 12)])
def test_the_workers_parts_make_the_global_batches(
    write_small: WriteSmall, workers: int, window_rows: int, batch: int, start: int
) -> None:
    """With drawn latents. The last batch is smaller, and batches span windows and epochs."""
    folder, _, manifest = write_small(ROWS, rows_per_shard=10, rows_per_group=4, posterior=True, flip=True)
    data = Dataset(folder, manifest, 2, window_rows, True, True)
    stop = start + 13 * batch - 1
    expected = list(local_batches(data, batch_size=batch, start=start, stop=stop))
    found = parts(data, start, stop, batch, workers)
    assert len(found) == len(expected) > 0
    for whole, pieces in zip(expected, found, strict=True):
        assert [sample for piece in pieces for sample in piece.samples] == list(whole.samples)
        for name in ("row_ids", "latents", "labels"):
            assert torch.equal(torch.cat([getattr(piece, name) for piece in pieces]), getattr(whole, name))


def test_rows_are_transformed_as_in_whole_windows(write_small: WriteSmall, tmp_path: Path) -> None:
    """Tokens of captions, and erased latents: both are drawn by the position of a row."""
    write_captioned(tmp_path / "captioned", captions_of(ROWS))
    tokenizer = train_bpe(itertools.chain(*captions_of(ROWS)), vocabulary=300)
    folder, _, manifest = write_small(ROWS, rows_per_shard=10, rows_per_group=4, flip=True)
    captioned = Dataset(
        tmp_path / "captioned",
        Manifest.read(tmp_path / "captioned"),
        5,
        9,
        fields=("captions", "latent"),
        transform=DrawCaptions(tokenizer, 9, 5),
    )
    erased = Dataset(folder, manifest, 3, 9, flip=True, transform=AugmentLatents(AugmentConfig(erasing=0.6), 3))

    def keep(columns: Columns, first: int) -> Columns:
        return columns

    for data in (captioned, erased):
        expected = list(local_batches(data, batch_size=7, start=0, stop=56, collate=keep))
        for whole, pieces in zip(expected, parts(data, 0, 56, 7, 2, collate=keep), strict=True):
            assert whole.keys() == pieces[0].keys()
            for name, values in whole.items():
                assert np.array_equal(np.concatenate([piece[name] for piece in pieces]), values)


def test_a_row_group_is_read_once_and_only_if_it_is_needed(
    write_small: WriteSmall, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _, manifest = write_small(ROWS, rows_per_shard=10, rows_per_group=4)
    read: list[tuple[str, int]] = []

    class Counting(pq.ParquetFile):  # type: ignore[misc]
        def __init__(self, path: Path, **options: Any) -> None:
            super().__init__(path, **options)
            self.name = path.name

        def read_row_group(self, index: int, *args: Any, **options: Any) -> pa.Table:
            read.append((self.name, index))
            return super().read_row_group(index, *args, **options)

    monkeypatch.setattr(pq, "ParquetFile", Counting)
    data = Dataset(folder, manifest, 2, 12)
    whole = batches_in_memory(data, batch_size=4, start=0, stop=4 * ROWS, rank=0, num_workers=1)
    assert read == []
    first: Batch = next(whole)
    groups = {(int(row) // 10, int(row) % 10 // 4) for row in first.row_ids}  # shards of 4 + 4 + 2 rows
    assert sorted(read) == sorted((manifest.shards[shard].file, group) for shard, group in groups)
    assert len(list(whole)) == ROWS - 1
    assert sorted(read) == sorted(
        (shard.file, group) for shard in manifest.shards for group in range(-(-shard.rows // 4))
    )


def test_a_damaged_shard_is_named(write_small: WriteSmall) -> None:
    folder, _, manifest = write_small(ROWS, rows_per_shard=10, rows_per_group=4)
    shard = folder / manifest.shards[1].file
    shard.write_bytes(shard.read_bytes()[:-7])
    data = Dataset(folder, manifest, 2, 12)
    with pytest.raises(UserError, match=f"shard {shard} cannot be read"):
        list(batches_in_memory(data, batch_size=4, start=0, stop=ROWS, rank=1, num_workers=2))
