"""Drawing a latent from a row: by hand from the Parquet files, and by the law of the posterior."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
import torch
from scipy import stats

from causalfusion import draws
from causalfusion_platform.data.manifest import Manifest
from causalfusion_platform.data.read import Batch, Dataset, local_batches, read_window
from causalfusion_platform.data.shards import Rows

ROWS = 23
WriteSmall = Callable[..., tuple[Path, Rows, Manifest]]
KINDS = list(itertools.product([False, True], repeat=2))
"""(draw from the posterior, mirror)"""


def stored_rows(folder: Path) -> dict[str, npt.NDArray[np.generic]]:
    """Read every file of the folder into arrays; row i of the data set is row i of each."""
    tables = [pq.read_table(path) for path in sorted(folder.glob("*.parquet"))]
    columns = {}
    for name in tables[0].column_names:
        chunks = [chunk for table in tables for chunk in table[name].chunks]
        columns[name] = np.concatenate([np.array(chunk.to_pylist()) for chunk in chunks])
    return columns


def by_hand(
    stored: dict[str, npt.NDArray[np.generic]], row: int, seed: int, position: int, *, posterior: bool, flip: bool
) -> torch.Tensor:
    """Return one row's latent (1, 2, 2): mean + std · ε in float32, of the image or of its mirror image."""
    mirrored = flip and draws.stream_seed(seed, "flip", position) & 1
    suffix = "_flip" if mirrored else ""
    mean = torch.tensor(stored[f"mean{suffix}"][row].tolist()).reshape(1, 2, 2)
    if not posterior:
        return mean
    std = torch.tensor(stored[f"std{suffix}"][row].tolist()).reshape(1, 2, 2)
    noise = torch.randn(1, 2, 2, generator=draws.stream(seed, "posterior", position))
    return (mean + std * noise).half().float()


@pytest.mark.parametrize(("posterior", "flip"), KINDS)
@pytest.mark.parametrize("seed", [0, 7])
def test_each_rows_draw_by_hand(write_small: WriteSmall, posterior: bool, flip: bool, seed: int) -> None:
    """Over two epochs, read from their beginning."""
    folder, rows, manifest = write_small(ROWS, rows_per_shard=10, rows_per_group=4, posterior=True, flip=True)
    stored = stored_rows(folder)
    assert stored["key"].tolist() == rows.keys
    data = Dataset(folder, manifest, seed, 9, posterior, flip)
    for window in data.windows(0, 2 * ROWS):
        columns = read_window(data, window)
        assert {name: column.dtype for name, column in columns.items()} == {
            "row_id": np.int64,
            "label": np.int64,
            "latent": np.float16,
        }
        for place, row in enumerate(columns["row_id"].tolist()):
            wanted = by_hand(stored, row, seed, window.position + place, posterior=posterior, flip=flip)
            assert torch.equal(torch.from_numpy(columns["latent"][place]).float(), wanted)
            assert columns["label"][place] == stored["label"][row]


def latents_by_row(data: Dataset, epoch: int) -> torch.Tensor:
    """Return the latents of one epoch in the order of the rows."""
    batch: Batch
    (batch,) = local_batches(data, batch_size=ROWS, start=epoch * ROWS, stop=(epoch + 1) * ROWS)
    return batch.latents[batch.row_ids.argsort()]


@pytest.mark.parametrize(("posterior", "flip"), KINDS)
def test_every_epoch_has_draws_of_its_own(write_small: WriteSmall, posterior: bool, flip: bool) -> None:
    folder, _, manifest = write_small(ROWS, rows_per_shard=10, rows_per_group=4, posterior=True, flip=True)
    data = Dataset(folder, manifest, 1, 9, posterior, flip)
    first, second = latents_by_row(data, 0), latents_by_row(data, 1)
    again = latents_by_row(data, 0)
    other_seed = latents_by_row(dataclasses.replace(data, seed=2), 0)
    assert torch.equal(first, again)
    for other in (second, other_seed):
        same_rows = (first == other).flatten(1).all(1).float().mean()
        if posterior:
            assert same_rows == 0
        elif flip:
            assert 0.2 < same_rows < 0.8  # the coin falls alike for half of the rows
        else:
            assert same_rows == 1


@pytest.mark.parametrize("flip", [False, True])
def test_draws_follow_the_stored_posterior(
    own_folder: Path, write_rows: Callable[..., Manifest], flip: bool
) -> None:
    """Thousands of epochs of one row: normal about its mean with its std, mirrored half of the time."""
    alike, count = 60, 6000
    mean, std = np.array([-2.0, 0.5, 0.0, 3.0]), np.array([0.25, 1.0, 0.0, 2.0])
    mean_flip, std_flip = np.array([1.5, -1.25, 20.0, 0.25]), np.array([1.0, 0.5, 0.0, 0.125])

    def latents(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float16]:
        return values.reshape(1, 1, 2, 2).repeat(alike, axis=0).astype(np.float16)

    rows = Rows(
        row_ids=np.arange(alike),
        labels=np.zeros(alike, np.int64),
        keys=[str(row) for row in range(alike)],
        mean=latents(mean),
        std=latents(std),
        mean_flip=latents(mean_flip),
        std_flip=latents(std_flip),
    )
    manifest = write_rows(rows, own_folder / "alike", rows_per_shard=alike, rows_per_group=alike)
    data = Dataset(own_folder / "alike", manifest, 3, alike, sample_posterior=True, flip=flip)
    batches = local_batches(data, batch_size=count, start=0, stop=count)
    drawn = torch.cat([batch.latents for batch in batches]).flatten(1).double().numpy()
    assert drawn.shape == (count, 4)
    mirrored = drawn[:, 2] == 20.0  # its std is zero there
    assert np.all(drawn[~mirrored, 2] == 0.0)
    if flip:
        assert stats.binomtest(int(mirrored.sum()), count).pvalue > 1e-3
    else:
        assert not mirrored.any()
    for which, means, stds in ((~mirrored, mean, std), (mirrored, mean_flip, std_flip)):
        for place in (0, 1, 3):
            values = (drawn[which, place] - means[place]) / stds[place]
            if len(values):
                assert stats.kstest(values, "norm").pvalue > 1e-3
    normals = (drawn[~mirrored] - mean)[:, [0, 1, 3]] / std[[0, 1, 3]]
    for one, other in ((normals[:, 0], normals[:, 1]), (normals[:-1, 0], normals[1:, 0])):
        assert stats.pearsonr(one, other).pvalue > 1e-3


def test_draws_are_rounded_once(write_small: WriteSmall) -> None:
    """mean + std · ε is taken in float32: in fp16 its steps would each be rounded."""
    folder, _, manifest = write_small(ROWS, rows_per_shard=10, rows_per_group=4, posterior=True)
    data = Dataset(folder, manifest, 0, 30, sample_posterior=True)
    stored = stored_rows(folder)
    (batch,) = local_batches(data, batch_size=ROWS, start=0, stop=ROWS)
    in_halves = []
    for position, row in enumerate(batch.row_ids.tolist()):
        mean, std = (torch.tensor(stored[name][row].tolist()).half().reshape(1, 2, 2) for name in ("mean", "std"))
        noise = torch.randn(1, 2, 2, generator=draws.stream(0, "posterior", position)).half()
        in_halves.append((mean + std * noise).float())
    assert not torch.equal(torch.stack(in_halves), batch.latents)
    assert torch.allclose(torch.stack(in_halves), batch.latents, rtol=0, atol=0.02)
