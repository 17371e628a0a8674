"""RandAugment's operations on images: timm's set whose effect grows with the magnitude (`inc1`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageEnhance, ImageOps

Fill = tuple[int, int, int]
Resampling = Literal[Image.Resampling.BILINEAR, Image.Resampling.BICUBIC]

_LEVELS = 256


@dataclass(frozen=True)
class Operation:
    """One operation: its argument by magnitude, and its effect."""

    argument: Callable[[float, int], float]
    """(magnitude / 10, sign ±1) → argument. Operations without a direction ignore the sign."""
    apply: Callable[[Image.Image, float, Fill, Resampling], Image.Image]
    """(RGB image, argument, colour outside of the image, interpolation) → image of the same size."""


def _without_argument(share: float, sign: int) -> float:  # noqa: ARG001
    return 0.0


def _bits(share: float, sign: int) -> float:  # noqa: ARG001
    """Return the bits to keep: 4 … 0."""
    return 4 - int(share * 4)


def _threshold(share: float, sign: int) -> float:  # noqa: ARG001
    """Return the lowest level to invert: 256 … 0."""
    return _LEVELS - min(_LEVELS, int(share * _LEVELS))


def _addend(share: float, sign: int) -> float:  # noqa: ARG001
    """Return the levels to add to dark pixels: 0 … 110."""
    return min(128, int(share * 110))


def _factor(share: float, sign: int) -> float:
    """Return the factor of an enhancement: 1 changes nothing, 0.1 and 1.9 are the ends."""
    return max(0.1, 1.0 + sign * (share * 0.9))


def _signed(largest: float) -> Callable[[float, int], float]:
    return lambda share, sign: sign * (share * largest)


def _by_table(table: list[int]) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.point(table * len(image.getbands()))


def _posterize(image: Image.Image, bits: float, fill: Fill, resampling: Resampling) -> Image.Image:  # noqa: ARG001
    # Pillow's own refuses to keep 0 bits, a black image.
    mask = _LEVELS - 2 ** (8 - int(bits))
    return _by_table([level & mask for level in range(_LEVELS)])(image)


def _solarize(image: Image.Image, threshold: float, fill: Fill, resampling: Resampling) -> Image.Image:  # noqa: ARG001
    return ImageOps.solarize(image, int(threshold))


def _solarize_add(image: Image.Image, add: float, fill: Fill, resampling: Resampling) -> Image.Image:  # noqa: ARG001
    return _by_table([min(255, level + int(add)) if level < 128 else level for level in range(_LEVELS)])(image)


def _fixed(effect: Callable[[Image.Image], Image.Image]) -> Operation:
    return Operation(_without_argument, lambda image, _argument, _fill, _resampling: effect(image))


def _enhanced(enhancer: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    return Operation(_factor, lambda image, factor, _fill, _resampling: enhancer(image).enhance(factor))


def _rotate(image: Image.Image, degrees: float, fill: Fill, resampling: Resampling) -> Image.Image:
    return image.rotate(degrees, resample=resampling, fillcolor=fill)


Matrix = tuple[float, float, float, float, float, float]


def _affine(matrix: Callable[[Image.Image, float], Matrix], largest: float) -> Operation:
    """Return the operation that takes pixel (x, y) from (ax + by + c, dx + ey + f)."""

    def apply(image: Image.Image, argument: float, fill: Fill, resampling: Resampling) -> Image.Image:
        coefficients = matrix(image, argument)
        kind = Image.Transform.AFFINE
        return image.transform(image.size, kind, coefficients, resample=resampling, fillcolor=fill)

    return Operation(_signed(largest), apply)


OPERATIONS = {
    "AutoContrast": _fixed(ImageOps.autocontrast),
    "Equalize": _fixed(ImageOps.equalize),
    "Invert": _fixed(ImageOps.invert),
    "Rotate": Operation(_signed(30.0), _rotate),
    "PosterizeIncreasing": Operation(_bits, _posterize),
    "SolarizeIncreasing": Operation(_threshold, _solarize),
    "SolarizeAdd": Operation(_addend, _solarize_add),
    "ColorIncreasing": _enhanced(ImageEnhance.Color),
    "ContrastIncreasing": _enhanced(ImageEnhance.Contrast),
    "BrightnessIncreasing": _enhanced(ImageEnhance.Brightness),
    "SharpnessIncreasing": _enhanced(ImageEnhance.Sharpness),
    "ShearX": _affine(lambda _, factor: (1, factor, 0, 0, 1, 0), 0.3),
    "ShearY": _affine(lambda _, factor: (1, 0, 0, factor, 1, 0), 0.3),
    "TranslateXRel": _affine(lambda image, share: (1, 0, share * image.width, 0, 1, 0), 0.45),
    "TranslateYRel": _affine(lambda image, share: (1, 0, 0, 0, 1, share * image.height), 0.45),
}
"""timm's names → operations, in timm's order. Degrees, bits, levels, factors, and shares of a side."""
