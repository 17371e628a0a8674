"""Going without shards that are bad: within a budget, by name, and as if they had never been there."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path

import pytest
import torch

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.data.manifest import Manifest
from causalfusion_platform.data.read import Batch, Dataset, local_batches, read_all
from causalfusion_platform.data.shards import Rows
from causalfusion_platform.data.validate import CheckedShards, open_shards

ROWS = 23
WriteRows = Callable[..., Manifest]


@pytest.fixture
def folder(own_folder: Path, make_rows: Callable[..., Rows], write_rows: WriteRows) -> Path:
    """Three shards of 10, 10 and 3 rows, with a posterior and mirrored images."""
    folder = own_folder / "small"
    write_rows(make_rows(ROWS, posterior=True, flip=True), folder, rows_per_shard=10, rows_per_group=4)
    return folder


def shard(index: int) -> str:
    return f"shard-{index:05d}-of-00003.parquet"


def lose(folder: Path, indices: Collection[int]) -> None:
    for index in indices:
        (folder / shard(index)).unlink()


@pytest.mark.parametrize(
    ("bad", "rows", "allowed"),
    [([2], 3, 3 / 23), ([0], 10, 10 / 23), ([0, 2], 13, 0.57), ([1, 0], 20, 0.99)],
)
def test_within_the_budget(folder: Path, bad: list[int], rows: int, allowed: float) -> None:
    whole = Manifest.read(folder)
    lose(folder, bad)
    checked = open_shards(folder, max_bad_rows=allowed)
    assert checked.manifest == whole
    assert checked.bad == {shard(index): "the file is missing" for index in sorted(bad)}
    assert [entry.file for entry in checked.usable.shards] == [shard(i) for i in range(3) if i not in bad]
    assert checked.usable.rows == ROWS - rows
    assert checked.usable.class_names == whole.class_names
    assert checked.notice.startswith(
        f"left out: {len(bad)} of 3 shards in {folder}, {rows} of 23 rows\n  {shard(min(bad))}: the file is missing"
    )


@pytest.mark.parametrize(
    ("bad", "allowed"), [([2], 0.0), ([2], 0.13), ([0], 0.43), ([0, 2], 0.5), ([0, 1], 0.86), ([0, 1, 2], 0.999)]
)
def test_beyond_the_budget(folder: Path, bad: list[int], allowed: float) -> None:
    """The refusal names every bad shard and what would be enough, and that is enough."""
    lose(folder, bad)
    with pytest.raises(UserError) as caught:
        open_shards(folder, max_bad_rows=allowed)
    message = str(caught.value)
    for index in range(3):
        named = f"shard {folder / shard(index)} does not match its manifest: the file is missing"
        assert (named in message) == (index in bad)
    if len(bad) == 3:
        assert "max_bad_rows" not in message
        return
    assert message.endswith(f" (now {allowed:g})")
    enough = float(message.split("data.max_bad_rows=")[1].split()[0])
    assert allowed < enough < 1
    assert len(open_shards(folder, max_bad_rows=enough).bad) == len(bad)


@pytest.mark.parametrize(("bad", "rows"), [(29, 50), (63, 90), (58, 100), (1, 2), (1, 8), (999, 1000)])
def test_what_is_advised_is_enough(
    own_folder: Path, make_rows: Callable[..., Rows], write_rows: WriteRows, bad: int, rows: int
) -> None:
    """Also where a share times the rows is a hair less than a whole number, as 0.58 · 50 is."""
    folder = own_folder / "small"
    manifest = write_rows(make_rows(rows), folder, rows_per_shard=max(bad, rows - bad), rows_per_group=1000)
    (folder / manifest.shards[bad <= rows - bad].file).unlink()
    lost = manifest.shards[bad <= rows - bad].rows
    with pytest.raises(UserError) as caught:
        open_shards(folder)
    enough = float(str(caught.value).split("data.max_bad_rows=")[1].split()[0])
    assert enough - lost / rows < 0.0011
    assert open_shards(folder, max_bad_rows=enough).usable.rows == rows - lost


def stream_of(folder: Path, manifest: Manifest, epochs: int) -> list[Batch]:
    data = Dataset(folder, manifest, 5, 9, sample_posterior=True, flip=True)
    return list(local_batches(data, batch_size=4, start=0, stop=epochs * manifest.rows))


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_a_stream_without_a_shard_is_that_of_a_folder_that_never_had_it(
    folder: Path, own_folder: Path, make_rows: Callable[..., Rows], write_rows: WriteRows, bad: int
) -> None:
    """The other folder is written anew, from the other rows alone, each shard by itself."""
    whole = make_rows(ROWS, posterior=True, flip=True)
    kept = [index for index in range(3) if index != bad]
    never = own_folder / "never"
    never.mkdir()
    entries = []
    for index in kept:
        one = own_folder / str(index)
        part = write_rows(whole.slice(slice(10 * index, 10 * index + 10)), one, rows_per_shard=10, rows_per_group=4)
        shutil.copy(one / part.shards[0].file, never / shard(index))
        entries.append(part.shards[0].model_copy(update={"file": shard(index)}))
    rows = sum(entry.rows for entry in entries)
    Manifest.read(folder).model_copy(update={"shards": entries, "rows": rows}).write(never)

    os.truncate(folder / shard(bad), 100)
    usable = open_shards(folder, max_bad_rows=0.5).usable
    found = stream_of(folder, usable, 2)
    expected = stream_of(never, open_shards(never).usable, 2)
    assert len(found) == len(expected)
    for one_batch, other in zip(found, expected, strict=True):
        assert one_batch.samples == other.samples
        assert torch.equal(one_batch.row_ids, other.row_ids)
        assert torch.equal(one_batch.latents, other.latents)
        assert torch.equal(one_batch.labels, other.labels)
    ids = torch.cat([batch.row_ids for batch in found]).tolist()
    left = [row for row in range(ROWS) if min(row // 10, 2) != bad]
    assert Counter(ids[:rows]) == Counter(ids[rows:]) == Counter(left)
    assert read_all(folder, usable).row_ids.tolist() == left


def test_no_shard_is_left(folder: Path) -> None:
    manifest = Manifest.read(folder)
    checked = CheckedShards(folder, manifest, {shard(index): "lost" for index in range(3)})
    with pytest.raises(UserError, match="all 3 shards are bad"):
        _ = checked.usable
    assert manifest.without(()) is manifest
