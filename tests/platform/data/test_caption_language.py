"""Measured properties against a loop, terciles against counting, and captions against their own parser."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from causalfusion.text.tokenizer import train_bpe
from causalfusion_platform.data.caption_language import (
    CELLS,
    CUTS,
    DIGITS,
    INK,
    SLANT,
    WIDTH,
    PropertyWords,
    captions_of,
    describe,
    parse,
    properties,
)
from causalfusion_platform.data.digits import digits
from causalfusion_platform.data.mnist import mnist
from causalfusion_platform.data.pixels import to_pixels


def all_digits() -> tuple[Tensor, Tensor]:
    rows = digits()
    return torch.from_numpy(rows.mean), torch.from_numpy(rows.labels)


def by_loop(ink: list[list[float]]) -> tuple[float, float, float]:
    """Return ink, slant and width of one image, pixel by pixel from the definitions."""
    pixels = [(y, x, value) for y, row in enumerate(ink) for x, value in enumerate(row)]
    total = math.fsum(value for _, _, value in pixels)
    mean_y = math.fsum(y * value for y, _, value in pixels) / total
    mean_x = math.fsum(x * value for _, x, value in pixels) / total

    def moment(p: int, q: int) -> float:
        return math.fsum((x - mean_x) ** p * (y - mean_y) ** q * value for y, x, value in pixels) / total

    return total / len(pixels), -moment(1, 1) / moment(0, 2), math.sqrt(moment(2, 0))


def drawn(*lines: str) -> Tensor:
    """Return the image of a drawing, where # is full ink: (1, 1, 8, 8)."""
    ink = torch.zeros(1, 1, 8, 8)
    for y, line in enumerate(lines):
        for x, mark in enumerate(line):
            ink[0, 0, y, x] = mark == "#"
    return 2 * ink - 1


@pytest.mark.parametrize("side", [8, 16])
def test_properties_equal_a_loop_over_pixels(side: int) -> None:
    images, _ = load_digits(return_X_y=True)
    real = (
        torch.from_numpy(images[::9].reshape(-1, 8, 8) / 16)
        if side == 8
        else (torch.from_numpy(mnist().mean[::50, 0]).double() + 1) / 2
    )
    noise = torch.rand(40, side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ink = torch.cat([real, noise])
    found = torch.stack(properties(2 * ink[:, None] - 1), dim=1)
    expected = torch.tensor([by_loop(image) for image in ink.tolist()], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert found.dtype == torch.float64


def test_properties_of_drawings() -> None:
    slash = properties(drawn("       #", "      #", "     #", "    #", "   #", "  #", " #", "#"))
    assert slash.slant.item() == pytest.approx(1)
    assert slash.width.item() == pytest.approx(math.sqrt(63 / 12))
    assert slash.ink.item() == 1 / 8
    backslash = properties(drawn("#", " #", "  #", "   #"))
    assert backslash.slant.item() == pytest.approx(-1)
    post = properties(drawn("  #", "  #", "  #"))
    assert (post.slant.item(), post.width.item()) == (0, 0)


def test_images_without_moments_have_defined_properties() -> None:
    blank, one_row, one_pixel = drawn(), drawn("", "", "", " ####"), drawn("", "  #")
    faint = drawn("", "", "", " ####") * 0.3 - 0.699
    found = properties(torch.cat([blank, one_row, one_pixel, faint]))
    assert found.ink[0] == found.width[0] == 0
    assert found.slant.tolist()[:3] == [0, 0, 0]
    assert found.width[1].item() == pytest.approx(math.sqrt(15 / 12))
    assert all(values.isfinite().all() for values in found)
    assert describe(blank, torch.tensor([3])) == [PropertyWords("three", "light", "upright", "narrow")]


def test_images_outside_the_range_are_clamped() -> None:
    image = drawn(" ##", " #", " #")
    wild = torch.where(image > 0, 7.0, -9.0)
    wild[0, 0, 7, 7] = torch.nan
    assert properties(wild) == properties(image)


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 8, 8),
        torch.zeros(2, 3, 8, 8),
        torch.zeros(2, 1, 8, 9),
        torch.zeros(2, 1, 12, 12),
        torch.zeros(2, 1, 8, 8).int(),
    ],
)
def test_other_images_are_refused(images: Tensor) -> None:
    with pytest.raises(ValueError, match="images"):
        properties(images)


@pytest.mark.parametrize("labels", [torch.tensor([1]), torch.tensor([1, 10]), torch.tensor([-1, 1])])
def test_other_labels_are_refused(labels: Tensor) -> None:
    with pytest.raises(ValueError, match="label"):
        describe(torch.zeros(2, 1, 8, 8), labels)


@pytest.mark.parametrize("name", ["ink", "slant", "width"])
@pytest.mark.parametrize(("side", "count", "margin"), [(8, 1797, 1e-5), (16, 5000, 1e-6)])
def test_cuts_are_the_terciles_of_the_set(side: int, count: int, margin: float, name: str) -> None:
    """No other cut, between other values, parts the digits more nearly in thirds."""
    images = all_digits()[0] if side == 8 else torch.from_numpy(mnist().mean)
    assert images.shape == (count, 1, side, side)
    values = sorted(getattr(properties(images), name).tolist())
    for third, cut in zip((count / 3, 2 * count / 3), getattr(CUTS[side], name), strict=True):
        below = sum(value < cut for value in values)
        between = [place for place in range(1, count) if values[place - 1] < values[place]]
        assert below == min(between, key=lambda place: abs(place - third))
        assert min(abs(value - cut) for value in values) > margin


def test_words_are_relative_to_the_data_set() -> None:
    """An upright post has the middle slant among the bundled digits, and the left one on MNIST."""
    small = drawn("   ##", "   ##", "   ##", "   ##", "   ##", "   ##", "   ##", "   ##")
    large = small.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert properties(large).slant == properties(small).slant == 0
    assert properties(large).ink == properties(small).ink
    one = torch.tensor([1])
    assert describe(small, one) == [PropertyWords("one", "light", "upright", "narrow")]
    assert describe(large, one) == [PropertyWords("one", "bold", "left", "narrow")]


def test_counts_of_the_words() -> None:
    words = describe(*all_digits())
    assert Counter(each.digit for each in words)["zero"] == 178
    assert Counter(each.ink for each in words) == {"light": 603, "medium": 589, "bold": 605}
    assert Counter(each.slant for each in words) == dict.fromkeys(SLANT, 599)
    assert Counter(each.width for each in words) == dict.fromkeys(WIDTH, 599)
    assert len({*words}) == 203


def test_pixels_of_8_bits_change_few_words() -> None:
    images, labels = all_digits()
    exact, rounded = describe(images, labels), describe(to_pixels(images.float()), labels)
    assert [words.ink for words in exact] == [words.ink for words in rounded]
    assert sum(one != other for one, other in zip(exact, rounded, strict=True)) < 0.005 * len(exact)


def test_words_of_a_slash() -> None:
    slash = drawn("     ##", "     ##", "    ##", "    ##", "   ##", "   ##", "  ##", "  ##")
    assert describe(slash, torch.tensor([1])) == [PropertyWords("one", "light", "right", "regular")]


def test_every_caption_is_read_back() -> None:
    assert len({*CELLS}) == 270
    for cell in CELLS:
        captions = captions_of(cell)
        assert len({*captions}) == 5
        assert [parse(caption) for caption in captions] == [cell] * 5


def test_the_templates_order_the_properties_differently() -> None:
    cell = PropertyWords("seven", "bold", "left", "wide")
    captions = captions_of(cell)
    assert captions[0] == "a bold wide seven leaning left"
    orders = {tuple(word for word in caption.split() if word in cell) for caption in captions}
    assert len(orders) == 5


def test_32_words() -> None:
    words = {word for cell in CELLS for caption in captions_of(cell) for word in caption.split()}
    assert len(words) == 32
    assert len(words - {*DIGITS, *INK, *SLANT, *WIDTH}) == 13


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", (None, None, None, None)),
        ("a seven", ("seven", None, None, None)),
        ("A Bold SEVEN, leaning left.", ("seven", "bold", "left", None)),
        ("a seven or a nine, wide", (None, None, None, "wide")),
        ("a seven that is a seven", ("seven", None, None, None)),
        ("sevens leftwards someone widely", (None, None, None, None)),
        ("left right upright bold light", (None, None, None, None)),
        ("\N{SNOWMAN}seven\nwide", ("seven", None, None, "wide")),
    ],
)
def test_parsing_of_any_text(text: str, words: tuple[str | None, ...]) -> None:
    assert parse(text) == words


def test_words_that_are_none_have_no_caption() -> None:
    with pytest.raises(ValueError, match="not words of the four properties"):
        captions_of(PropertyWords("seven", "bold", None, "wide"))


def test_a_caption_has_at_most_16_tokens() -> None:
    """By a byte-level BPE trained on the captions of all digits, BOS and EOS included."""
    captions = [caption for words in describe(*all_digits()) for caption in captions_of(words)]
    tokenizer = train_bpe(captions, vocabulary=512)
    assert max(len(tokenizer.encode(caption)) for caption in {*captions}) <= 16
