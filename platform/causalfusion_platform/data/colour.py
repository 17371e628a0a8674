"""Conversion of decoded pixels of any mode to 8-bit RGB."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import PHOTOMETRIC_INTERPRETATION, TiffImageFile

from .faults import Action


def to_rgb(image: Image.Image, levels: int, found: Callable[[str, str], Action]) -> Image.Image:
    """Return a loaded image as RGB. Colour profiles are not applied, as in ADM.

    Args:
        image: image of any mode that a decoder gives.
        levels: largest sample value as stored, 255 for 8 bits.
        found: called with the kind and the details of every fault. It returns the action, or raises.
    """
    kind = _kind(image, levels)
    as_stored = f"{image.format}, mode {image.mode}"
    if kind is not None:
        found(kind, f"{as_stored}, samples up to {levels}" if kind in ("gray16", "rgb16") else as_stored)
    if kind == "gray16":
        image = _gray_of(image, levels)
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = _rgba_of(image, levels)
    colours, alpha = rgba.convert("RGB"), rgba.getchannel("A")
    opacity = np.asarray(alpha).min()
    if opacity == 255 or found("transparency", f"{as_stored}, opacity from {opacity}/255") == "keep":
        return colours
    flat = Image.new("RGB", image.size, "white")
    flat.paste(colours, mask=alpha)
    return flat


def _kind(image: Image.Image, levels: int) -> str | None:
    """Return the kind of fault of an image's mode, or None for 8-bit RGB and RGBA."""
    match image.mode:
        case "CMYK":
            return "cmyk"
        case "P" | "PA":
            return "palette"
        case "1" | "L" | "LA" | "La":
            return "gray8"
        case "I" | "F":
            # Pillow has no 16-bit mode for PGM.
            return "gray16" if (image.mode, image.format) == ("I", "PPM") else "deep"
        case mode if mode.startswith("I;16"):
            return "gray16"
    return "rgb16" if levels > 255 else None


def _gray_of(image: Image.Image, levels: int) -> Image.Image:
    """Return 16-bit gray as L, or LA if one value is transparent: 255·v/levels, rounded."""
    samples = np.asarray(image).astype(np.int64)
    key = image.info.get("transparency")
    if isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0:
        # Zero is white. Pillow inverts that for 8 bits, and not for 16.
        samples = levels - samples
    gray = Image.fromarray(((255 * samples + levels // 2) // levels).astype(np.uint8))
    if key is not None:
        gray.putalpha(Image.fromarray(np.where(samples == key, 0, 255).astype(np.uint8)))
    return gray


def _rgba_of(image: Image.Image, levels: int) -> Image.Image:
    """Return an image with an alpha channel, or with a transparent value, as RGBA."""
    key = image.info.get("transparency")
    # PNG gives that value in the file's own samples, but Pillow compares it after scaling to 8 bits.
    if image.mode == "L" and levels < 255 and key is not None:
        image.info["transparency"] = key * 255 // levels
    elif image.mode == "RGB" and levels > 255 and key is not None:
        image.info["transparency"] = tuple(sample >> 8 for sample in key)
    # Pillow converts premultiplied gray to RGBA only through LA.
    return (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
