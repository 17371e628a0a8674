"""The digits in two parts without captions: the rows of scikit-learn's split, and which folders they go to."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.data.captioned_digits import write_captioned_digits
from causalfusion_platform.data.digits import write_digits
from causalfusion_platform.data.manifest import Manifest
from causalfusion_platform.data.split_digits import (
    digits_command,
    ensure_split_digits,
    validation_folder,
    write_split_digits,
)


def test_the_parts_are_those_of_the_captioned_digits(own_folder: Path) -> None:
    """Both against scikit-learn's split of the arrays, and row by row against the folders with captions."""
    written = write_split_digits(own_folder / "plain")
    captioned = write_captioned_digits(own_folder / "captioned")
    assert [manifest.split for manifest in (*written, *captioned)] == ["train", "val"] * 2
    assert [manifest.captions for manifest in (*written, *captioned)] == [False] * 2 + [True] * 2
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(np.arange(1797), test_size=300, random_state=0)
    for name, part in zip(("", "-validation"), parts, strict=True):
        plain, beside = (pq.read_table(own_folder / f"{kind}{name}") for kind in ("plain", "captioned"))
        ids = plain.column("row_id").to_numpy()
        assert ids.tolist() == sorted(part.tolist())
        assert plain.column("label").to_pylist() == labels[ids].tolist()
        pixels = (plain.column("mean").combine_chunks().to_numpy_ndarray().astype(np.float64) + 1) * 8
        assert np.array_equal(pixels.reshape(-1, 64), images[ids])
        assert plain.equals(beside.drop_columns(["captions"]))


def test_missing_parts_are_written_by_the_seed_of_the_others(own_folder: Path) -> None:
    folder = own_folder / "digits"
    assert ensure_split_digits(folder) == write_split_digits(own_folder / "again").train
    written = write_split_digits(folder, seed=5)
    for path in validation_folder(folder).iterdir():
        path.unlink()
    assert ensure_split_digits(folder) == written.train
    assert Manifest.read(validation_folder(folder)) == written.validation


@pytest.mark.parametrize(
    ("write", "held"), [(write_digits, "in one part"), (write_captioned_digits, "with captions")]
)
def test_other_digits_are_not_taken(own_folder: Path, write: Callable[[Path], object], held: str) -> None:
    folder = own_folder / "digits"
    write(folder)
    before = sorted(own_folder.rglob("*"))
    says = f"data.prepare=split, but {folder} holds the digits {held}\n  name a folder that is not there yet"
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        ensure_split_digits(folder)
    assert str(caught.value).endswith(f"causalfusion data digits {folder} --split")
    assert sorted(own_folder.rglob("*")) == before


@pytest.mark.parametrize(("seed", "options"), [(0, "--split"), (4, "--split --seed 4")])
def test_the_command_that_makes_them_anew(own_folder: Path, seed: int, options: str) -> None:
    written = write_split_digits(own_folder / "mine", seed=seed)
    earlier = written.validation.source.location.replace("validation", "held-out")
    of_earlier = written.validation.model_copy(
        update={"source": written.validation.source.model_copy(update={"location": earlier})}
    )
    for folder, manifest in (
        ("mine", written.train),
        ("mine-validation", written.validation),
        ("mine-heldout", of_earlier),
    ):
        assert digits_command(Path(folder), manifest) == f"causalfusion data digits mine {options}"
