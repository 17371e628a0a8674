"""What a sample set is handed out as, and one kind made from the other."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.conftest import files_of
from tests.platform.sampling.plans import images_of, make_plan

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.data.sources.label_file import LabelColumns, read_label_file
from causalfusion_platform.sampling import outputs
from causalfusion_platform.sampling.outputs import (
    Output,
    clear_half_written,
    outputs_there,
    png_name,
    read_output,
    write_output,
)
from causalfusion_platform.sampling.pixels import Pixels
from causalfusion_platform.sampling.sample_set import Finished

PLAN = make_plan(num=11, labels="random")
IMAGES = images_of(PLAN)
DIGEST = hashlib.sha256(IMAGES.tobytes()).hexdigest()


def in_parts() -> Iterator[Pixels]:
    yield from np.split(IMAGES, [4, 8])


@pytest.fixture
def small_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four PNGs to a folder."""
    monkeypatch.setattr(outputs, "_PNGS_PER_FOLDER", 4)


def test_an_npz(tmp_path: Path) -> None:
    finished = write_output(tmp_path, "npz", PLAN, in_parts(), None)
    np.savez(tmp_path / "numpy.npz", IMAGES, PLAN.label_tensor().numpy())
    assert (tmp_path / "samples.npz").read_bytes() == (tmp_path / "numpy.npz").read_bytes()
    assert finished == Finished(digest=DIGEST, npz_bytes=(tmp_path / "numpy.npz").stat().st_size)
    assert outputs_there(tmp_path, finished) == ["npz"]


@pytest.mark.usefixtures("small_folders")
def test_pngs(tmp_path: Path) -> None:
    finished = write_output(tmp_path, "png", PLAN, in_parts(), None)
    assert finished == Finished(digest=DIGEST, png=True)
    names = [f"png/{index // 4:03d}/{index:06d}.png" for index in range(11)]
    assert set(files_of(tmp_path)) == {*names, "png/labels.csv"}
    for name, expected in zip(names, IMAGES, strict=True):
        with Image.open(tmp_path / name) as image:
            assert image.mode == "RGB"
            assert np.array_equal(np.asarray(image), expected)
    labels = read_label_file(str(tmp_path / "png/labels.csv"), LabelColumns())
    assert [f"png/{name}" for name in labels.names] == names
    assert labels.labels == PLAN.label_tensor().tolist()


def test_names_are_the_same_whoever_writes_them(tmp_path: Path) -> None:
    assert [png_name(index) for index in (0, 999, 1000, 49_999)] == [
        "000/000000.png",
        "000/000999.png",
        "001/001000.png",
        "049/049999.png",
    ]
    for name in ("a", "b"):
        write_output(tmp_path / name, "png", PLAN, in_parts(), None)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


@pytest.mark.usefixtures("small_folders")
@pytest.mark.parametrize(("first", "second"), [("npz", "png"), ("png", "npz")])
def test_one_is_made_from_the_other(tmp_path: Path, first: Output, second: Output) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    before = write_output(tmp_path / "a", first, PLAN, in_parts(), None)
    after = write_output(tmp_path / "a", second, PLAN, read_output(tmp_path / "a", first, PLAN), before)
    other = write_output(tmp_path / "b", second, PLAN, in_parts(), None)
    other = write_output(tmp_path / "b", first, PLAN, in_parts(), other)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    assert after == other
    assert outputs_there(tmp_path / "a", after) == ["npz", "png"]


def test_changed_images_are_not_handed_on(tmp_path: Path) -> None:
    finished = write_output(tmp_path, "png", PLAN, in_parts(), None)
    Image.fromarray(IMAGES[3]).save(tmp_path / "png/000/000007.png")
    with pytest.raises(UserError, match="have changed since they were made"):
        write_output(tmp_path, "npz", PLAN, read_output(tmp_path, "png", PLAN), finished)
    (tmp_path / "png/000/000007.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"000007\.png cannot be read"):
        list(read_output(tmp_path, "png", PLAN))
    assert not list(tmp_path.glob("*.npz"))
    assert not list(tmp_path.glob(".*"))


def test_what_is_gone_is_not_there(tmp_path: Path) -> None:
    finished = write_output(tmp_path, "npz", PLAN, in_parts(), None)
    finished = write_output(tmp_path, "png", PLAN, in_parts(), finished)
    assert outputs_there(tmp_path, None) == []
    (tmp_path / "samples.npz").write_bytes(b"cut")
    assert outputs_there(tmp_path, finished) == ["png"]
    (tmp_path / "png").rename(tmp_path / "moved")
    assert outputs_there(tmp_path, finished) == []


def test_what_was_half_written_goes(tmp_path: Path) -> None:
    (tmp_path / ".png.77/000").mkdir(parents=True)
    (tmp_path / ".png.77/000/000000.png").touch()
    for name in (".samples.npz.77", ".samples.json.77", ".lock", "samples.json", "mine.png"):
        (tmp_path / name).touch()
    clear_half_written(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "samples.json", "mine.png"}


def test_pngs_of_an_interrupted_launch_are_replaced(tmp_path: Path) -> None:
    """They may be there without being on record: the process was killed in between."""
    (tmp_path / "png/000").mkdir(parents=True)
    (tmp_path / "png/000/999999.png").touch()
    write_output(tmp_path, "png", PLAN, in_parts(), None)
    assert not (tmp_path / "png/000/999999.png").exists()
    assert len(list(tmp_path.glob("png/000/*.png"))) == 11
