"""Captions of handwritten digits, made of measured properties: 32 words, five templates, and a parser.

Ink, slant and width are exact on any image, real or generated. Each is cut into three words at the terciles of a
data set. Images of 8×8 pixels are those of the 1,797 bundled digits, and of 16×16 those of the 5,000 of MNIST. So a
word is relative to its data set: digits of MNIST lean right, and those that `left` names stand or lean left. With
the class they are the four properties that a caption names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
"""Word of each class."""
INK, SLANT, WIDTH = ("light", "medium", "bold"), ("left", "upright", "right"), ("narrow", "regular", "wide")
"""Words of each measured property, in the order of its values."""
TEMPLATES = (
    "a {ink} {width} {digit} {posture} {slant}",
    "the {width} {digit} is {ink} and {posture} {slant}",
    "{posture} {slant} is a {width} {digit} in {ink} ink",
    "the {digit} {posture} {slant} has {ink} strokes and a {width} shape",
    "with {ink} strokes the {digit} is drawn {width} and {posture} {slant}",
)
"""Captions of an image, which differ in the order of the properties."""

_POSTURE = {"left": "leaning", "upright": "standing", "right": "leaning"}
_WORD = re.compile(r"[a-z]+")
# Vertical variance in pixels² below which an image counts as one row, which has no slant.
_ONE_ROW = 1e-9


class Properties(NamedTuple):
    """Measured properties of images, each (B,) float64."""

    ink: Tensor
    """Mean of the ink, in [0, 1]."""
    slant: Tensor
    """−μ11 / μ02: pixels to the right for each pixel upward. 0: ink in one row alone, or none."""
    width: Tensor
    """σx, the horizontal standard deviation of the ink in pixels. 0: ink in one column alone, or none."""


class Cuts(NamedTuple):
    """Where the values of each property part into three words."""

    ink: tuple[float, float]
    slant: tuple[float, float]
    width: tuple[float, float]


CUTS = {
    8: Cuts(ink=(0.2886, 0.3208), slant=(-0.09267, 0.01165), width=(1.1973, 1.3242)),
    16: Cuts(ink=(0.148913, 0.1991198), slant=(0.008577, 0.255639), width=(2.316524, 2.912861)),
}
"""Side of images in pixels → terciles of the bundled digits, or of MNIST's.

Each is strictly between two values of the data set. Of ink, where many of the bundled digits are equal, each is the
value that parts them most nearly in thirds.
"""


class PropertyWords(NamedTuple):
    """Words of the four properties of an image, or those that a text names. None: it names none, or several."""

    digit: str | None
    ink: str | None
    slant: str | None
    width: str | None


CELLS = tuple(PropertyWords(*words) for words in product(DIGITS, INK, SLANT, WIDTH))
"""All 270 property cells: combinations of a class and three words."""


def properties(images: Tensor) -> Properties:
    """Measure ink, slant and width of images by their central second moments.

    Args:
        images: (B, 1, 8, 8) or (B, 1, 16, 16), floating in [−1, 1], or uint8. Numbers outside are clamped, and NaN
            counts as −1.

    Raises:
        ValueError: images are of another type or shape.
    """
    ink = _ink(images)
    places = torch.arange(ink.shape[-1], dtype=torch.float64, device=ink.device)
    total = ink.sum(dim=(1, 2))
    share = torch.where(total > 0, 1 / total, 0)[:, None, None] * ink
    rows, columns = share.sum(dim=2), share.sum(dim=1)
    down, right = places - (rows @ places)[:, None], places - (columns @ places)[:, None]
    across = (share * down[:, :, None] * right[:, None, :]).sum(dim=(1, 2))
    vertical, horizontal = (rows * down**2).sum(dim=1), (columns * right**2).sum(dim=1)
    slant = torch.where(vertical > _ONE_ROW, -across / vertical, 0)
    return Properties(ink.mean(dim=(1, 2)), slant, horizontal.sqrt())


def describe(images: Tensor, labels: Tensor) -> list[PropertyWords]:
    """Return the words of images, as `properties` takes them, of the classes `labels` (B,).

    Raises:
        ValueError: images are of another type or shape, or labels of another number or range.
    """
    if labels.shape != images.shape[:1]:
        raise ValueError(f"one label for each of {len(images)} images is needed, got {tuple(labels.shape)}")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(DIGITS):
        raise ValueError(f"labels must be 0…9, got {int(labels.min())}…{int(labels.max())}")
    measured, cuts = properties(images), CUTS[images.shape[-1]]
    columns = (
        [DIGITS[label] for label in labels.tolist()],
        _words(measured.ink, INK, cuts.ink),
        _words(measured.slant, SLANT, cuts.slant),
        _words(measured.width, WIDTH, cuts.width),
    )
    return [PropertyWords(*words) for words in zip(*columns, strict=True)]


def captions_of(words: PropertyWords) -> list[str]:
    """Return the five captions of an image with these words.

    Raises:
        ValueError: they are not one of `CELLS`.
    """
    if words not in _CELLS:
        raise ValueError(f"{tuple(words)} are not words of the four properties: {DIGITS}, {INK}, {SLANT}, {WIDTH}")
    posture = _POSTURE[str(words.slant)]
    return [template.format(**words._asdict(), posture=posture) for template in TEMPLATES]


def parse(text: str) -> PropertyWords:
    """Return the property words that any text names. None: it names none of a property's words, or several."""
    named = set(_WORD.findall(text.lower()))
    return PropertyWords(*(_only(named & {*words}) for words in (DIGITS, INK, SLANT, WIDTH)))


_CELLS = frozenset(CELLS)


def _ink(images: Tensor) -> Tensor:
    """Return the ink of images, (B, side, side) float64: 0 is white, 1 is black."""
    if images.ndim != 4 or images.shape[1:] not in [(1, side, side) for side in CUTS]:
        sides = " or ".join(f"(B, 1, {side}, {side})" for side in CUTS)
        raise ValueError(f"images {sides} are needed, got {tuple(images.shape)}")
    if images.dtype == torch.uint8:
        return images[:, 0].double() / 255
    if not images.is_floating_point():
        raise ValueError(f"images must be floating in [−1, 1], or uint8, got {images.dtype}")
    return (images[:, 0].double().nan_to_num(nan=-1.0).clamp(-1, 1) + 1) / 2


def _words(values: Tensor, words: Sequence[str], cuts: Sequence[float]) -> list[str]:
    places = torch.bucketize(values, torch.tensor(cuts, dtype=values.dtype, device=values.device))
    return [words[place] for place in places.tolist()]


def _only(named: set[str]) -> str | None:
    return named.pop() if len(named) == 1 else None
