"""References of folders: against numpy over all images at once, ended and continued, and refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.platform.data.pictures import photo
from tests.platform.evaluation.tiny_extractor import SIZE, TinyExtractor
from torch import Tensor

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.evaluation import folder_reference
from causalfusion_platform.evaluation.extractors.extractor import Features
from causalfusion_platform.evaluation.folder_reference import (
    FolderRecord,
    files_path,
    record_path,
    write_folder_reference,
)
from causalfusion_platform.evaluation.reference import read_reference

COUNT = 150
"""Images of the folder: two batches and a part of one."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of JPEGs of many sizes, two of them gray or to be shown turned, and a file of text."""
    root = tmp_path_factory.mktemp("coco") / "val2014"
    (root / "more").mkdir(parents=True)
    numbers = np.random.default_rng(0)
    whole = Image.fromarray(photo(200, 150))
    for number in range(COUNT):
        left, top = (int(numbers.integers(0, 100)) for _ in range(2))
        width, height = (int(numbers.integers(SIZE, 50)) for _ in range(2))
        image = whole.crop((left, top, left + width, top + height))
        exif = Image.Exif()
        if number == 3:
            exif[0x0112] = 6  # shown turned by a quarter
        name = f"{'more/' if number % 7 == 0 else ''}COCO_val2014_{number:012}.jpg"
        (image.convert("L") if number == 2 else image).save(root / name, quality=95, exif=exif)
    (root / "README.txt").write_text("not an image")
    return root


def adm_crop(path: Path) -> Image.Image:
    """Crop as ADM's evaluation does, which turns no image upright."""
    image = Image.open(path).convert("RGB")
    while min(image.size) >= 2 * SIZE:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = SIZE / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - SIZE) // 2, (image.height - SIZE) // 2
    return image.crop((left, top, left + SIZE, top + SIZE))


def measure(folder: Path, out: Path, extractor: TinyExtractor, expected: int | None = COUNT) -> FolderRecord:
    return write_folder_reference(str(folder), out, extractor, size=SIZE, expected=expected)


def test_statistics_are_those_of_all_crops(folder: Path, tmp_path: Path) -> None:
    extractor, out = TinyExtractor(), tmp_path / "new" / "val2014.npz"
    shown: list[tuple[int, int]] = []
    record = write_folder_reference(
        str(folder), out, extractor, size=SIZE, expected=COUNT, show=lambda *at: shown.append(at)
    )
    files = sorted(folder.rglob("*.jpg"), key=lambda path: str(path.relative_to(folder)).encode())
    pixels = np.stack([np.asarray(adm_crop(path)) for path in files])
    features = extractor.features(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()))
    reference = read_reference(out, extractor)
    for found, values in ((reference.pool, features.pool), (reference.spatial, features.spatial)):
        assert found is not None
        assert values is not None
        exact = values.double().numpy()
        np.testing.assert_allclose(found.mean, exact.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(found.covariance, np.cov(exact.T), rtol=1e-9, atol=1e-13)
    assert reference.image_size == SIZE
    assert shown == [(64, COUNT), (128, COUNT), (COUNT, COUNT)]

    lines = files_path(out).read_text().splitlines()
    assert lines == [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder)}" for path in files
    ]
    listed = hashlib.sha256(files_path(out).read_bytes()).hexdigest()
    assert (record.images, record.folder, record.images_sha256) == (COUNT, "val2014", listed)
    assert (record.space, record.weights_sha256) == (extractor.space, extractor.digest)
    assert record.faults == {"exif_rotation": 1, "gray8": 1}
    assert json.loads(record_path(out).read_text()) == dataclasses.asdict(record)
    # The record of every metric against the reference repeats its source.
    assert reference.source == (f"150 images of val2014, center_crop of ADM to 4×4 (SHA-256 {listed[:12]}…)")


def test_an_ended_one_goes_on_to_the_same_bytes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole.npz"
    measure(folder, whole, TinyExtractor())
    monkeypatch.setattr(folder_reference, "_SAVED_EVERY_SECONDS", 0)

    class Ended(TinyExtractor):
        def features(self, images: Tensor) -> Features:
            if self.seen == 128:
                raise KeyboardInterrupt
            return super().features(images)

    out = tmp_path / "ended.npz"
    with pytest.raises(KeyboardInterrupt):
        measure(folder, out, Ended())
    assert not out.exists()
    rest = TinyExtractor()
    measure(folder, out, rest)
    assert rest.seen == COUNT - 128
    for name in (lambda path: path, files_path, record_path):
        assert name(out).read_bytes() == name(whole).read_bytes()
    assert {path.name.partition(".")[0] for path in tmp_path.iterdir()} == {"whole", "ended"}
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("damage", [lambda content: content[:-100], lambda content: b"x" * len(content)])
def test_damaged_work_is_begun_anew(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[bytes], bytes]
) -> None:
    out = tmp_path / "x.npz"
    kept = unfinished(folder, out, TinyExtractor(), monkeypatch)
    kept.write_bytes(damage(kept.read_bytes()))
    extractor = TinyExtractor()
    measure(folder, out, extractor)
    assert extractor.seen == COUNT


def unfinished(folder: Path, out: Path, extractor: TinyExtractor, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Measure all images, but end before the reference is written. Return the file that is gone on from."""
    with monkeypatch.context() as patched, pytest.raises(ZeroDivisionError):
        patched.setattr(folder_reference, "_SAVED_EVERY_SECONDS", 0)
        patched.setattr(folder_reference, "_write", lambda *_: 1 // 0)
        measure(folder, out, extractor)
    return out.with_name(f"{out.name}.part")


def test_work_with_other_weights_is_not_gone_on_from(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "x.npz"
    assert unfinished(folder, out, TinyExtractor(digest="0" * 64), monkeypatch).exists()
    extractor = TinyExtractor()
    assert measure(folder, out, extractor).weights_sha256 == extractor.digest
    assert extractor.seen == COUNT


def test_a_finished_one_is_not_made_again(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.npz"
    record, again = measure(folder, out, TinyExtractor()), TinyExtractor()
    assert measure(folder, out, again) == record
    assert again.seen == 0
    for other in (TinyExtractor(digest="0" * 64), TinyExtractor(space="another")):
        with pytest.raises(UserError, match=r"x\.npz is there, of other images, another size or other weights"):
            measure(folder, out, other)
    record_path(out).unlink()
    with pytest.raises(UserError, match=r"x\.npz is there"):
        measure(folder, out, again)


def test_every_image_counts(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds 150 images, not 40,504\n.*--images 150"):
        measure(folder, tmp_path / "x.npz", TinyExtractor(), expected=40_504)
    assert measure(folder, tmp_path / "any.npz", TinyExtractor(), expected=None).images == COUNT


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "image b.jpg: zero_bytes"),
        (b"text", "image b.jpg: not_image"),
        (None, "image b.jpg: truncated"),
    ],
)
def test_an_image_that_cannot_be_decoded_ends_it(
    folder: Path, tmp_path: Path, content: bytes | None, message: str
) -> None:
    whole = (folder / "COCO_val2014_000000000001.jpg").read_bytes()
    (tmp_path / "few").mkdir()
    (tmp_path / "few" / "a.jpg").write_bytes(whole)
    (tmp_path / "few" / "b.jpg").write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(UserError, match=message) as caught:
        measure(tmp_path / "few", tmp_path / "x.npz", TinyExtractor(), expected=2)
    assert "every image is a part of the reference" in str(caught.value)
    assert not (tmp_path / "x.npz").exists()


def test_arguments_that_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x\.txt does not end in \.npz\n.*x\.npz"):
        measure(folder, tmp_path / "x.txt", TinyExtractor())
    with pytest.raises(UserError, match="nowhere does not exist"):
        measure(tmp_path / "nowhere", tmp_path / "x.npz", TinyExtractor())
    with pytest.raises(UserError, match="is a file, not a folder"):
        measure(folder / "README.txt", tmp_path / "x.npz", TinyExtractor())
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").touch()
    with pytest.raises(UserError, match="holds no image\n"):
        measure(tmp_path / "empty", tmp_path / "x.npz", TinyExtractor())
    (tmp_path / "empty" / "one.jpg").touch()
    with pytest.raises(UserError, match="holds 1 image, but a covariance needs at least 2"):
        measure(tmp_path / "empty", tmp_path / "x.npz", TinyExtractor(), expected=None)
