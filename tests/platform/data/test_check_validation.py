"""Shards of validation that do not fit those of training, or share rows with them, are refused."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.data.check_validation import check_validation
from causalfusion_platform.data.manifest import Description, Manifest, Split
from causalfusion_platform.data.overlap import ShardsOf, shared_latents
from causalfusion_platform.data.shards import Rows, write_shards
from causalfusion_platform.data.split_digits import validation_folder, write_split_digits
from causalfusion_platform.data.validate import CheckedShards, open_shards

MakeRows = Callable[..., Rows]
Check = Callable[..., CheckedShards]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the training part of the digits, beside that of validation. Tests do not change them."""
    folder = tmp_path_factory.mktemp("digits") / "digits"
    write_split_digits(folder)
    return folder


@pytest.fixture
def check(make_experiment: Callable[..., Experiment]) -> Check:
    """Return the check of two folders: (train, validation, classes=…, key of the data section=…)."""

    def run(train: Path, validation: Path | None, *, classes: bool = True, **data: object) -> CheckedShards:
        experiment = make_experiment(data={"path": train, "validation": validation, **data}, task="probe")
        return check_validation(experiment, open_shards(train), classes=classes)

    return run


def refusal(check: Check, *folders: Path | None, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        check(*folders, **options)
    assert "\n  " in str(caught.value)
    return str(caught.value)


def marked(folder: Path, target: Path, **changes: object) -> Path:
    """Copy shards, and change what their manifest says."""
    shutil.copytree(folder, target)
    Manifest.read(folder).model_copy(update=changes).write(target)
    return target


def written(rows: Rows, folder: Path, like: Manifest, split: Split = "val", **source: object) -> Path:
    """Write rows of 2×2 latents as shards of another source with the same autoencoder and classes."""
    other = {"kind": "folders", "location": str(folder), "digest": folder.name} | source
    description = Description(
        split=split,
        source=like.source.model_copy(update=other),
        autoencoder=like.autoencoder,
        shape=(1, 2, 2),
        class_names=like.class_names,
    )
    write_shards(rows, description, folder, rows_per_shard=40, rows_per_group=8)
    return folder


def test_the_parts_of_the_digits_pass(digits: Path, check: Check) -> None:
    found = check(digits, validation_folder(digits))
    assert (found.manifest.rows, found.manifest.split, found.bad) == (300, "val", {})


def test_validation_that_is_not_given_or_not_there(digits: Path, check: Check, tmp_path: Path) -> None:
    said = refusal(check, digits, None)
    assert said.startswith("task=probe needs images that no training sees, but data.validation is not given\n")
    assert "data.prepare=split" in said
    assert refusal(check, digits, tmp_path / "gone").startswith(f"data.validation: {tmp_path}/gone is not a folder")


def test_shards_of_train_are_no_validation(digits: Path, check: Check, tmp_path: Path) -> None:
    said = refusal(check, digits, digits)
    assert said.startswith(f"data.validation: the shards in {digits} are marked train\n")
    assert f"causalfusion data digits {digits} --split" in said
    earlier = marked(validation_folder(digits), tmp_path / "digits-heldout", version=2, split="train")
    said = refusal(check, digits, earlier)
    assert "of version 2, which records no split and counts as train" in said
    assert said.endswith(f"causalfusion data digits {tmp_path}/digits --split")


def test_other_autoencoders_shapes_and_classes(
    digits: Path, check: Check, tmp_path: Path, make_rows: MakeRows
) -> None:
    beside = validation_folder(digits)
    coder = Manifest.read(beside).autoencoder.model_copy(update={"scale": 0.5})
    said = refusal(check, digits, marked(beside, tmp_path / "scale", autoencoder=coder))
    assert "autoencoder of the shards" in said
    assert f"identity, scale 0.5, but of those in {digits}: identity, scale 1\n" in said
    small = written(
        make_rows(20), tmp_path / "small", Manifest.read(beside).model_copy(update={"shape": (1, 2, 2)})
    )
    assert f"{small}: 1×2×2, but of those in {digits}: 1×8×8\n" in refusal(check, digits, small)
    names = marked(beside, tmp_path / "names", class_names=[*"012345678", "nine"])
    assert f"{names}: 10, number 9 is 'nine', but of those in {digits}: 10, number 9 is '9'\n" in refusal(
        check, digits, names
    )
    assert check(digits, names, classes=False).manifest.rows == 300
    assert f"{marked(beside, tmp_path / 'more', class_names=[*'0123456789', 'x'])}: 11, but" in refusal(
        check, digits, tmp_path / "more"
    )


def test_rows_of_one_source_in_both(digits: Path, check: Check, tmp_path: Path) -> None:
    """The split of another seed, which shares about 50 rows. Counted independently from the two splits."""
    other = write_split_digits(tmp_path / "digits", seed=1).validation
    assert other.split == "val"
    train = set(np.arange(1797)) - set(_validation_rows(0))
    both = sorted(train & set(_validation_rows(1)))
    said = refusal(check, digits, tmp_path / "digits-validation")
    named = ", ".join(f"digits/{row:04d}" for row in both[:3])
    counted = f"{len(both)} of 300 rows in {tmp_path}/digits-validation"
    assert said.startswith(f"data.validation: {counted} are rows of {digits} too: {named}, …")
    assert "max_overlap" not in said
    refusal(check, digits, tmp_path / "digits-validation", max_overlap=0.999)


def _validation_rows(seed: int) -> list[int]:
    from sklearn.model_selection import train_test_split

    return [int(row) for row in train_test_split(np.arange(1797), test_size=300, random_state=seed)[1]]


def test_keys_are_compared_within_one_location(
    digits: Path, check: Check, tmp_path: Path, make_rows: MakeRows
) -> None:
    """Karpathy's splits are of the same folders. Elsewhere equal names are other images."""
    like = Manifest.read(digits)
    rows = make_rows(40)
    others = replace(rows, keys=["x", "key 7", *(f"y {row}" for row in range(38))], mean=-1 - rows.mean)
    train = written(rows, tmp_path / "train", like, split="train", location="coco")
    same = written(others, tmp_path / "same", like, location="coco")
    assert "1 of 40 rows in" in (said := refusal(check, train, same))
    assert "are rows of" in said
    assert "too: key 7\n" in said
    assert check(train, written(others, tmp_path / "elsewhere", like)).manifest.rows == 40


def test_the_same_images_under_other_names(
    digits: Path, check: Check, tmp_path: Path, make_rows: MakeRows, caplog: pytest.LogCaptureFixture
) -> None:
    like = Manifest.read(digits)
    rows = make_rows(40)
    train = written(rows, tmp_path / "train", like, split="train")
    mean = (-1 - rows.mean).astype(np.float16)
    mean[[4, 30]] = rows.mean[[39, 2]]
    copies = written(replace(rows, mean=mean, keys=[f"copy {row}" for row in range(40)]), tmp_path / "copies", like)
    said = refusal(check, train, copies)
    assert said.startswith(
        f"data.validation: 2 of 40 rows in {copies} have the latents of rows in {train}: copy 4, copy 30\n"
    )
    enough = float(said.rpartition("data.max_overlap=")[2])
    assert 2 / 40 <= enough < 0.06
    check(train, copies, max_overlap=enough)
    assert "copy 4, copy 30. data.max_overlap=0.05" in caplog.text
    refusal(check, train, copies, max_overlap=0.04)


def test_large_folders_are_sampled(digits: Path) -> None:
    """A folder with all its rows in training is found from a tenth of the bytes, and the shares are exact."""
    train = ShardsOf(digits, Manifest.read(digits))
    found = shared_latents(train, train, most_bytes=300 * 128)
    assert 128 <= found.compared <= 300
    assert found.of_training == found.compared / 1497
    assert len(found.keys) == found.compared  # both draw the same row groups here
    apart = shared_latents(train, ShardsOf(validation_folder(digits), Manifest.read(validation_folder(digits))))
    assert (apart.keys, apart.compared, apart.of_training) == ([], 300, 1.0)
    assert re.fullmatch(r"digits/\d{4}", found.keys[0])
