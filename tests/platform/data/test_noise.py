"""Columns of noise beside those that are read from shards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from causalfusion_platform.data.manifest import Manifest
from causalfusion_platform.data.noise import noise_columns
from causalfusion_platform.data.read import Dataset, read_window
from causalfusion_platform.data.shards import Rows

FIELDS = ("label", "key", "latent", "std_flip")


def test_noise_has_the_columns_of_shards(write_small: Callable[..., tuple[Path, Rows, Manifest]]) -> None:
    folder, _, manifest = write_small(6, rows_per_shard=6, rows_per_group=3, posterior=True, flip=True)
    data = Dataset(folder, manifest, seed=0, window_rows=6, sample_posterior=True, flip=True, fields=FIELDS)
    read = read_window(data, next(data.windows(0, 6)))
    made = noise_columns(FIELDS, 6, manifest.shape)
    assert {name: (column.dtype, column.shape) for name, column in made.items()} == {
        name: (column.dtype, column.shape) for name, column in read.items()
    }
    assert type(made["key"][0]) is type(read["key"][0])
    assert 0.5 < float(made["latent"].astype(np.float32).std()) < 1.5


def test_captions_are_lists_of_texts() -> None:
    made = noise_columns(("captions",), 2, (1, 2, 2))
    assert [list(captions) for captions in made["captions"]] == [["noise"], ["noise"]]


def test_a_column_that_shards_never_have() -> None:
    with pytest.raises(KeyError, match="audio"):
        noise_columns(("audio",), 2, (1, 2, 2))
