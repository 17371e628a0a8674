"""Decoding of an image file to the cropped square of pixels, with a record of every fault."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ExifTags import Base
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import BITSPERSAMPLE, TiffImageFile

from ..library_warnings import leave_out
from .colour import to_rgb
from .container import FORMATS, ends_early, family, format_by_name, format_by_signature, zeros_for_end
from .crop import center_crop, enlarged_size
from .faults import FAULT_KINDS, Action, FaultStop, Finding, Policies

# Threads share these settings. Faults become findings, and the limit of pixels is an argument.
Image.MAX_IMAGE_PIXELS = None
leave_out()

_Turn = Image.Transpose
_UPRIGHT = {
    2: _Turn.FLIP_LEFT_RIGHT,
    3: _Turn.ROTATE_180,
    4: _Turn.FLIP_TOP_BOTTOM,
    5: _Turn.TRANSPOSE,
    6: _Turn.ROTATE_270,
    7: _Turn.TRANSVERSE,
    8: _Turn.ROTATE_90,
}
"""EXIF orientation (CIPA DC-008, tag 0x0112) → transposition to upright. Pillow turns counterclockwise."""
_AS_STORED = _UPRIGHT | {6: _Turn.ROTATE_90, 8: _Turn.ROTATE_270}
"""Inverse transpositions. All but the quarter turns are their own inverse."""

_MACHINE_BOUND = re.compile(
    r"""'[^']*[/\\][^']*'|"[^"]*[/\\][^"]*"|\S*[/\\]\S*"""  # paths
    r"|<[^>]* at 0x[^>]*>|0x[0-9a-fA-F]{5,}"  # addresses
)


def decode_image(
    content: bytes | OSError, name: str, size: int, policies: Policies, max_pixels: int
) -> tuple[NDArray[np.uint8] | None, list[Finding]]:
    """Decode one image file and cut out its centred square.

    The result depends on the arguments alone, not on the machine or on other threads. Damage that the decoder
    accepts, such as flipped bits inside a JPEG, is not detected.

    Args:
        content: the file's bytes, or the error of reading them.
        name: the image's key. Its extension is compared with the content.
        size: side of the square, in pixels.
        policies: action for every kind of fault (`parse_policies`).
        max_pixels: largest number of pixels, as stored and after enlarging to the crop. More is the fault "huge".

    Returns:
        pixels: (size, size, 3) uint8 RGB, or None if a fault's policy is to skip.
        findings: every fault found, up to the first that is skipped.

    Raises:
        FaultStop: a fault's policy is to stop.
        ValueError: a kind has no policy, or a policy that it does not allow.
    """
    record = _ImageAttempt(name, policies)
    try:
        return _decode(content, name, size, max_pixels, record), record.findings
    except _Skipped:
        return None, record.findings


class _Skipped(Exception):
    """The image is left out, by policy."""


@dataclass
class _ImageAttempt:
    """Faults of one image found so far."""

    name: str
    policies: Policies
    findings: list[Finding] = field(default_factory=list)

    def __post_init__(self) -> None:
        for kind in FAULT_KINDS.values():
            action = self.policies.get(kind.name)
            if action not in kind.allowed:
                raise ValueError(f"the policy of {kind.name} is {action!r}; allowed: {', '.join(kind.allowed)}")

    def found(self, kind: str, detail: str) -> Action:
        """Record a fault and return its action, or raise if the action is to skip or to stop."""
        finding = Finding(kind, self.policies[kind], detail)
        self.findings.append(finding)
        if finding.action == "stop":
            raise FaultStop(self.name, finding)
        if finding.action == "skip":
            raise _Skipped
        return finding.action

    def reject(self, kind: str, detail: str) -> NoReturn:
        """Record a fault of an undecodable image, whose policy is to skip or to stop."""
        raise AssertionError(f"{kind} is not a fault to {self.found(kind, detail)}")


def _decode(
    content: bytes | OSError, name: str, size: int, max_pixels: int, record: _ImageAttempt
) -> NDArray[np.uint8]:
    if isinstance(content, OSError):
        record.reject("unreadable", _message(content))
    if not content:
        record.reject("zero_bytes", "0 bytes")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            rgb = _upright_rgb(image, content, name, max_pixels, record)
    except (_Skipped, FaultStop):
        raise
    except Exception as error:  # Pillow may raise any type on broken files
        record.reject(*_undecodable(content, error))
    if min(rgb.size) < size:
        width, height = enlarged_size(*rgb.size, size)
        record.found("tiny", f"{rgb.width}×{rgb.height} for a crop of {size}")
        if width * height > max_pixels:
            record.reject("huge", f"{width}×{height} once enlarged; at most {max_pixels} pixels are allowed")
    return center_crop(rgb, size)


def _upright_rgb(
    image: Image.Image, content: bytes, name: str, max_pixels: int, record: _ImageAttempt
) -> Image.Image:
    """Return the first frame of an opened image, decoded, RGB and upright. Errors of Pillow propagate."""
    if image.width * image.height > max_pixels:
        record.reject("huge", f"{image.width}×{image.height}; at most {max_pixels} pixels are allowed")
    animated = getattr(image, "is_animated", False)
    levels = _levels(image, content)
    # Pillow turns TIFF upright, and only TIFF, while it decodes.
    turned = isinstance(image, TiffImageFile)
    orientation = _orientation(image) if turned else 1
    image.load()
    if not turned:
        orientation = _orientation(image)

    if zeros := zeros_for_end(content):
        record.reject("truncated", f"JPEG of {len(content)} bytes: {zeros} zeros for its end")
    stored_format = family(image.format or "")
    named_format = format_by_name(name)
    if named_format not in (None, stored_format):
        record.found("wrong_extension", f"{stored_format} under an extension of {named_format}")
    if animated:
        record.found("animated", f"{image.format} of more than one frame")
    rgb = to_rgb(image, levels, record.found)
    if orientation in _UPRIGHT:
        upright = record.found("exif_rotation", f"EXIF orientation {orientation}") == "convert"
        if upright != turned:
            rgb = rgb.transpose((_UPRIGHT if upright else _AS_STORED)[orientation])
    return rgb


def _levels(image: Image.Image, content: bytes) -> int:
    """Return the largest sample value of an opened image by its header, or 255 if the header does not say it."""
    if image.format == "PNG":
        bits = content[24]  # IHDR comes first
        return (1 << bits) - 1
    if isinstance(image, TiffImageFile):
        bits = int(image.tag_v2.get(BITSPERSAMPLE, (1,))[0])
        return (1 << bits) - 1
    if isinstance(image, PpmImageFile):
        if image.mode == "I":
            return 65535  # Pillow scales to this from any maximum
        arguments = image.tile[0].args
        if image.mode == "RGB" and isinstance(arguments, tuple):
            return int(arguments[1])
    return 255


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, or 1 (as stored) if it is missing or unreadable."""
    try:
        return int(image.getexif().get(Base.Orientation, 1))
    except Exception:  # a damaged EXIF does not affect the image
        return 1


def _undecodable(content: bytes, error: Exception) -> tuple[str, str]:
    """Return the kind and the details of the fault that made a decoder fail."""
    announced = format_by_signature(content)
    if announced is None:
        return "not_image", f"none of {', '.join(FORMATS)}"
    detail = f"{announced} of {len(content)} bytes: {_message(error)}"
    if ends_early(content) or any(words in str(error).lower() for words in ("truncated", "not enough image data")):
        return "truncated", detail
    return "corrupt", detail


def _message(error: Exception) -> str:
    """Return the type and the text of an error on one line, without memory addresses and paths."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = " ".join(_MACHINE_BOUND.sub("…", text).split())
    return f"{type(error).__name__}: {text}"[:200].removesuffix(": ")
