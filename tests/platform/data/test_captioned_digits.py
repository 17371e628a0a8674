"""The digits with captions: split, bytes, captions, and the property cells that training does not see."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.data.caption_language import CELLS, captions_of, parse
from causalfusion_platform.data.captioned_digits import (
    cells_in,
    ensure_captioned_digits,
    words_in,
    write_captioned_digits,
)
from causalfusion_platform.data.digits import write_digits
from causalfusion_platform.data.manifest import Manifest
from causalfusion_platform.data.scan import scan_shards
from causalfusion_platform.data.split_digits import digits_command, split_rows, validation_folder
from causalfusion_platform.data.validate import check_fields, open_shards


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of training rows, beside that of the validation rows. Tests do not change them."""
    folder = tmp_path_factory.mktemp("captioned") / "digits"
    write_captioned_digits(folder)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes() for place in (folder, validation_folder(folder)) for path in place.iterdir()
    }


def test_both_parts_are_the_digits(captioned: Path) -> None:
    """scikit-learn's own split of the arrays, without the platform: images, labels, and every row once."""
    images, labels = load_digits(return_X_y=True)
    parts: list[NDArray[np.float64]] = train_test_split(images, test_size=300, random_state=0)
    row_ids = []
    for folder, part in zip((captioned, validation_folder(captioned)), parts, strict=True):
        table = pq.read_table(folder)
        ids = table.column("row_id").to_numpy()
        pixels = (table.column("mean").combine_chunks().to_numpy_ndarray().astype(np.float64) + 1) * 8
        assert np.array_equal(pixels.reshape(-1, 64), images[ids])
        assert sorted(map(tuple, pixels.reshape(-1, 64))) == sorted(map(tuple, part))
        assert table.column("label").to_pylist() == labels[ids].tolist()
        assert table.column("key").to_pylist() == [f"digits/{row:04d}" for row in ids]
        row_ids += ids.tolist()
    assert sorted(row_ids) == [*range(1797)]
    assert [len(part) for part in split_rows(0)] == [1497, 300]


def test_the_folders_are_whole(captioned: Path) -> None:
    for folder, rows in ((captioned, 1497), (validation_folder(captioned), 300)):
        checked = open_shards(folder)
        assert checked.usable.rows == rows
        assert checked.manifest.captions
        assert not scan_shards(folder).checked.bad
        check_fields(checked.manifest, ("label", "latent", "captions"), folder, "a task")


def test_every_row_has_its_five_captions(captioned: Path) -> None:
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    for folder in (captioned, validation_folder(captioned)):
        table = pq.read_table(folder)
        for label, captions in zip(
            *(table.column(name).to_pylist() for name in ("label", "captions")), strict=True
        ):
            (words,) = {parse(caption) for caption in captions}
            assert words.digit == names[label]
            assert captions == captions_of(words)


def test_70_of_270_cells_are_in_no_training_row(captioned: Path) -> None:
    """Computed from the latents, and from the captions."""
    seen = cells_in(captioned, Manifest.read(captioned))
    assert len({*CELLS} - seen) == 70
    captions = pq.read_table(captioned).column("captions").to_pylist()
    assert seen == {parse(caption) for row in captions for caption in row}
    assert words_in(captioned, Manifest.read(captioned)) == [parse(row[0]) for row in captions]
    validation = validation_folder(captioned)
    assert len(cells_in(validation, Manifest.read(validation)) - seen) == 3


def test_a_seed_names_the_bytes(captioned: Path, own_folder: Path) -> None:
    again = own_folder / "digits"
    other = write_captioned_digits(again, seed=7)
    assert {other.train.rows, other.validation.rows} == {1497, 300}
    before = content(captioned)
    assert content(again).keys() == before.keys()
    assert other.train.digest != Manifest.read(captioned).digest
    write_captioned_digits(again, seed=0)
    assert content(again) == before


def test_missing_parts_are_written(captioned: Path, own_folder: Path) -> None:
    folder = own_folder / "digits"
    assert ensure_captioned_digits(folder) == Manifest.read(captioned)
    whole = content(folder)
    for path in validation_folder(folder).iterdir():
        path.unlink()
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    ensure_captioned_digits(folder)
    assert content(folder) == whole == content(captioned)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == times


def test_validation_rows_are_those_of_the_training_rows(own_folder: Path) -> None:
    folder = own_folder / "digits"
    write_captioned_digits(folder, seed=5)
    before = content(folder)
    (validation_folder(folder) / "_manifest.json").unlink()
    ensure_captioned_digits(folder)
    assert content(folder) == before


def test_digits_without_captions_are_not_taken(own_folder: Path) -> None:
    folder = own_folder / "digits"
    manifest = write_digits(folder)
    with pytest.raises(UserError, match=re.escape(f"causalfusion data digits {folder} --captions")):
        ensure_captioned_digits(folder)
    with pytest.raises(UserError, match=re.escape(f"causalfusion data digits {folder}-captions --captions")):
        check_fields(manifest, ("captions",), folder, "a task")
    of_images = manifest.model_copy(update={"source": manifest.source.model_copy(update={"kind": "folders"})})
    with pytest.raises(UserError, match="encode the images again with captions: causalfusion data encode"):
        check_fields(of_images, ("captions",), folder, "a task")
    assert Manifest.read(folder) == manifest
    assert not validation_folder(folder).exists()


def test_a_folder_of_something_else_is_left_alone(own_folder: Path) -> None:
    beside = own_folder / "digits-validation"
    beside.mkdir()
    (beside / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"digits-validation exists and is not a folder of shards"):
        ensure_captioned_digits(own_folder / "digits")
    assert [path.name for path in own_folder.rglob("*") if path.is_file()] == ["notes.txt"]


def test_an_interruption_leaves_nothing_to_trust(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of one split never lie beside those of another, under a manifest."""
    folder = own_folder / "digits"
    write_captioned_digits(folder, seed=1)

    def stop(_: object, place: Path) -> None:
        if place == folder:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("causalfusion_platform.data.shards.write_manifest", stop)
        with pytest.raises(KeyboardInterrupt):
            write_captioned_digits(folder, seed=2)
    with pytest.raises(UserError, match=r"has no _manifest\.json"):
        Manifest.read(folder)


@pytest.mark.parametrize(("seed", "options"), [(0, "--captions"), (4, "--captions --seed 4")])
def test_the_command_that_makes_them_anew(own_folder: Path, seed: int, options: str) -> None:
    written = write_captioned_digits(own_folder / "mine", seed=seed)
    for folder, manifest in (("mine", written.train), ("mine-validation", written.validation)):
        assert digits_command(Path(folder), manifest) == f"causalfusion data digits mine {options}"
    plain = write_digits(own_folder / "plain")
    assert digits_command(Path("plain"), plain) == "causalfusion data digits plain"


def test_a_folder_without_a_name(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (own_folder / "here" / "below").mkdir(parents=True)
    monkeypatch.chdir(own_folder / "here" / "below")
    assert validation_folder(Path()) == own_folder / "here" / "below-validation"
    assert validation_folder(Path("..")) == own_folder / "here-validation"
    assert validation_folder(Path("a/b")) == Path("a/b-validation")
