"""Decoded pixels of any mode as 8-bit RGB."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import PHOTOMETRIC_INTERPRETATION, TiffImageFile

from .faults import Action


def to_rgb(image: Image.Image, levels: int, found: Callable[[str, str], Action]) -> Image.Image:
    """Return a loaded image as RGB; colour profiles are not applied, as in ADM.

    Args:
        image: of any mode that a decoder gives.
        levels: largest sample value as stored, 255 for 8 bits.
        found: told the kind and the details of every fault; returns what to do, or raises.
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
    """Return the kind of fault that an image's mode is, or None for 8-bit RGB and RGBA."""
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
    """Return 16-bit gray as L, or LA where one value stands for transparency: 255·v/levels, rounded."""
    samples = np.asarray(image).astype(np.int64)
    key = image.info.get("transparency")
    if isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0:
        # Zero is white. Pillow turns that round at 8 bits, and not at 16.
        samples = levels - samples
    gray = Image.fromarray(((255 * samples + levels // 2) // levels).astype(np.uint8))
    if key is not None:
        gray.putalpha(Image.fromarray(np.where(samples == key, 0, 255).astype(np.uint8)))
    return gray


def _rgba_of(image: Image.Image, levels: int) -> Image.Image:
    """Return an image with an alpha channel, or with a value that stands for transparency, as RGBA."""
    key = image.info.get("transparency")
    # PNG gives that value in the file's own samples; Pillow compares it with those after scaling to 8 bits.
    if image.mode == "L" and levels < 255 and key is not None:
        image.info["transparency"] = key * 255 // levels
    elif image.mode == "RGB" and levels > 255 and key is not None:
        image.info["transparency"] = tuple(sample >> 8 for sample in key)
    # Pillow takes premultiplied gray to RGBA only by way of LA.
    return (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
