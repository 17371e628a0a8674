"""The picture of a data set: its images, decoded by the autoencoder that made them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from tests.platform.conftest import description_of
from tests.platform.data.tiny_vaes import new_kl

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.data.autoencoder import Identity, open_encoder
from causalfusion_platform.data.classes import read_classes
from causalfusion_platform.data.manifest import AutoencoderId, Manifest
from causalfusion_platform.data.shards import Rows, write_shards
from causalfusion_platform.sampling.preview import open_decoder, write_preview

CELL = 64


def tiles(path: Path, rows: int, columns: int, cell: int) -> NDArray[np.uint8]:
    """Cut a grid into its tiles: (rows, columns, cell, cell, 3). Gaps are equal, labels are at the left."""
    grid = np.asarray(Image.open(path))
    gap, rest = divmod(grid.shape[0] - rows * cell, rows + 1)
    assert rest == 0
    left = grid.shape[1] - columns * (cell + gap)
    places = [
        (gap + row * (cell + gap), left + column * (cell + gap)) for row in range(rows) for column in range(columns)
    ]
    cut = [grid[top : top + cell, at : at + cell] for top, at in places]
    return np.stack(cut).reshape(rows, columns, cell, cell, 3)


def pixel_rows(side: int) -> tuple[Rows, NDArray[np.uint8]]:
    """Return RGB pixels as latents, mirrored images too, and the same images as uint8; label is row mod 3."""
    images = np.random.default_rng(0).integers(0, 256, (9, side, side, 3), dtype=np.uint8)
    mean = np.moveaxis(images / 127.5 - 1, 3, 1).astype(np.float16)
    rows = Rows(
        row_ids=np.arange(9),
        labels=np.arange(9) % 3,
        keys=[str(row) for row in range(9)],
        mean=mean,
        mean_flip=mean[..., ::-1],
    )
    return rows, images


def test_every_image_and_its_mirror_image(own_folder: Path) -> None:
    rows, images = pixel_rows(CELL)
    manifest = write_shards(rows, description_of(rows), own_folder / "small", rows_per_shard=4, rows_per_group=2)
    decoder = open_decoder(manifest, None, "cpu")
    assert isinstance(decoder, Identity)
    classes = read_classes(own_folder / "small", manifest)
    out = own_folder / "new/preview.png"
    assert write_preview(own_folder / "small", manifest, classes, decoder, out, num=9) == 9
    found = tiles(out, 3, 6, CELL)
    for label in range(3):
        shown = {tile.tobytes() for tile in found[label, ::2]}
        # fp16 pixels are off by up to 1/16 of a step: rounding finds the byte again
        assert shown == {image.tobytes() for image in images[label::3]}
        assert np.array_equal(found[label, 1::2], found[label, ::2, :, ::-1])


@pytest.mark.parametrize(("num", "expected"), [(1, 1), (2, 2), (7, 6), (1000, 9)])
def test_how_many(own_folder: Path, num: int, expected: int) -> None:
    rows, _ = pixel_rows(8)
    manifest = write_shards(rows, description_of(rows), own_folder / "small", rows_per_shard=9, rows_per_group=9)
    classes = read_classes(own_folder / "small", manifest)
    out = own_folder / "preview.png"
    assert write_preview(own_folder / "small", manifest, classes, Identity(), out, num=num) == expected


def test_large_images_are_made_smaller(own_folder: Path) -> None:
    rows, _ = pixel_rows(200)
    assert rows.mean_flip is not None
    rows.mean[:] = rows.mean_flip[:] = 0.5  # a grey stays what it is
    manifest = write_shards(rows, description_of(rows), own_folder / "small", rows_per_shard=9, rows_per_group=9)
    classes = read_classes(own_folder / "small", manifest)
    write_preview(own_folder / "small", manifest, classes, Identity(), own_folder / "preview.png", num=9)
    assert (tiles(own_folder / "preview.png", 3, 6, 128) == 191).all()  # 127.5 × 1.5


# The autoencoder


def test_pixels_need_none(digits_folder: Path) -> None:
    decoder = open_decoder(Manifest.read(digits_folder), None, "cpu")
    latents = torch.rand(2, 1, 8, 8)
    assert decoder is not None
    assert decoder.decode(latents).equal(latents)


def test_it_must_be_the_one_that_made_the_latents(own_folder: Path, digits_folder: Path) -> None:
    new_kl().save_pretrained("vae")
    other = new_kl()
    with torch.no_grad():
        other.decoder.conv_out.bias[0] += 1e-6
    other.save_pretrained("other")
    right = open_encoder("vae")
    made = AutoencoderId(name=right.name, scale=right.scale, weights_sha256=right.weights_sha256)
    manifest = Manifest.read(digits_folder).model_copy(update={"autoencoder": made})
    assert open_decoder(manifest, None, "cpu") is None
    found = open_decoder(manifest, "vae", "cpu")
    assert found is not None
    assert found.weights_sha256 == made.weights_sha256
    with pytest.raises(UserError, match="--vae other is another autoencoder") as caught:
        open_decoder(manifest, "other", "cpu")
    assert str(made.weights_sha256)[:16] in str(caught.value)
    assert str(open_encoder("other").weights_sha256)[:16] in str(caught.value)
    with pytest.raises(UserError, match="--vae identity is another autoencoder"):
        open_decoder(manifest, "identity", "cpu")
    rescaled = made.model_copy(update={"scale": 0.25})
    with pytest.raises(UserError, match=r"theirs: AutoencoderKL, scale 0.25"):
        open_decoder(manifest.model_copy(update={"autoencoder": rescaled}), "vae", "cpu")
