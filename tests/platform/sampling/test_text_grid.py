"""Pictures of text and images: where each sample lies, and texts of any length and kind."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from causalfusion_platform.sampling.text_grid import beside, caption_grid, prompt_grid, stacked, titled

CELL, PITCH, GAP, WIDTH = 64, 70, 6, 330


def shades(count: int, channels: int = 1) -> torch.Tensor:
    """Images of one shade each, darker ones first: shade i is 10 + 20 i."""
    values = (10 + 20 * torch.arange(count)) / 127.5 - 1
    return values[:, None, None, None].expand(count, channels, 8, 8)


def shade_at(picture: Image.Image, left: int, top: int) -> int:
    """The shade that a whole cell has."""
    cell = np.asarray(picture.crop((left, top, left + CELL, top + CELL)))
    assert len(np.unique(cell)) == 1
    return int(cell[0, 0, 0])


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_samples_stand_in_the_row_of_their_prompt(channels: int) -> None:
    picture = prompt_grid(["one", "two", "three"], shades(6, channels))
    assert picture.size == (WIDTH + 2 * PITCH + 2 * GAP, 3 * PITCH + GAP)
    for sample in range(6):
        row, column = divmod(sample, 2)
        found = shade_at(picture, WIDTH + column * PITCH, GAP + row * PITCH)
        assert found == pytest.approx(10 + 20 * sample, abs=1)


def test_captions_stand_beside_their_images() -> None:
    picture = caption_grid(shades(3), ["one", "two", ""])
    for row in range(3):
        assert shade_at(picture, GAP, GAP + row * PITCH) == pytest.approx(10 + 20 * row, abs=1)
    beside = np.asarray(picture)[:, GAP + CELL :].min(axis=(1, 2)).reshape(-1)
    inked = [bool((beside[GAP + row * PITCH :][:CELL] < 128).any()) for row in range(3)]
    assert inked == [True, True, False]


@pytest.mark.parametrize("text", ["word " * 200, "x" * 500, "七 ☃ \ufffd\n\ttabs", " "])
def test_any_text_stays_in_its_row(text: str) -> None:
    """The rows above and below it are white beside their images."""
    picture = caption_grid(shades(3), ["", text, ""])
    pixels = np.asarray(picture)[:, GAP + CELL :]
    assert (pixels[: GAP + CELL] == 255).all()
    assert (pixels[GAP + 2 * PITCH :] == 255).all()


def test_pictures_of_other_widths_are_stacked() -> None:
    one, other = prompt_grid(["one"], shades(4)), caption_grid(shades(2), ["a", "b"])
    both = stacked([one, other])
    assert both.size == (one.width, one.height + other.height)
    assert np.array_equal(np.asarray(both)[: one.height], np.asarray(one))
    assert np.array_equal(np.asarray(both)[one.height :, : other.width], np.asarray(other))


@pytest.mark.parametrize("cell", [48, 128, 256])
def test_long_texts_stay_beside_the_samples(cell: int) -> None:
    """The gap before the samples is white, and so are the gaps between the rows."""
    prompts = ["a photograph of a brown dog " * 20, "three"]
    picture = np.asarray(prompt_grid(prompts, torch.zeros(2, 1, 8, 8), cell=cell).convert("L"))
    left = WIDTH
    assert (picture[:, left - 4 : left] == 255).all()
    assert (picture[:3] == 255).all()
    assert (picture[cell + 6 : cell + 12] == 255).all()
    assert (picture[:, :left] < 255).any()


def test_pictures_of_other_heights_stand_beside_each_other() -> None:
    one, other = caption_grid(shades(3), ["a", "b", "c"]), caption_grid(shades(2), ["d", "e"])
    both = beside([one, other])
    assert both.size == (one.width + other.width, one.height)
    pixels = np.asarray(both)
    assert np.array_equal(pixels[:, : one.width], np.asarray(one))
    assert np.array_equal(pixels[: other.height, one.width :], np.asarray(other))
    assert (pixels[other.height :, one.width :] == 255).all()


@pytest.mark.parametrize("title", ["A title", "a long title " * 40])
def test_a_title_stands_above_its_picture_and_is_not_cut(title: str) -> None:
    picture = caption_grid(shades(2), ["", ""])
    whole = titled(title, picture)
    above = np.asarray(whole)[: whole.height - picture.height]
    inked = np.flatnonzero((above < 128).any(axis=(0, 2)))
    assert inked[0] > 0 and inked[-1] < whole.width - 1
    assert np.array_equal(np.asarray(whole)[-picture.height :, : picture.width], np.asarray(picture))
