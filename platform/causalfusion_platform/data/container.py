"""Format and completeness of an image file, read from its bytes before decoding."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Literal

from PIL import Image

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that are decoded, by Pillow's names.

Left out are formats without a signature, and those that Pillow hands to other programs (EPS, WMF). Containers whose
inner images have sizes of their own (ICO, ICNS) are left out too.
"""

_SAME = {"MPO": "JPEG", "DIB": "BMP"}

# All plugins are loaded here, because later threads would race for it.
Image.init()
_EXTENSIONS = Image.registered_extensions()


def family(image_format: str) -> str:
    """Return the format that a variant belongs to: JPEG for `MPO`, a JPEG followed by more images."""
    return _SAME.get(image_format, image_format)


def format_by_name(name: str) -> str | None:
    """Return the format of a file's extension, or None for extensions other than images'."""
    image_format = _EXTENSIONS.get(PurePosixPath(name).suffix.lower())
    return None if image_format is None else family(image_format)


def format_by_signature(content: bytes) -> str | None:
    """Return the one of FORMATS that the first bytes announce, or None."""
    head = content[:16]
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WEBP"
    if head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF"
    if head[4:12] in (b"ftypavif", b"ftypavis"):
        return "AVIF"
    if head.startswith((b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n")):
        return "JPEG2000"
    # Two letters alone could also begin a text: BMP has zeros after them, PPM white space.
    if head.startswith(b"BM") and head[6:10] == bytes(4):
        return "BMP"
    if head[:1] == b"P" and head[1:2] in b"123456f" and head[2:3].isspace():
        return "PPM"
    return None


def ends_early(content: bytes) -> bool:
    """Return True if an image file that cannot be decoded lacks its end. Some decodable files lack it too.

    For BMP, PPM and most TIFF the decoder itself reports a missing end.
    """
    trimmed = content.rstrip(b"\0\r\n")
    match format_by_signature(content):
        case "JPEG" | "JPEG2000":
            return not trimmed.endswith(b"\xff\xd9")
        case "PNG":
            return b"IEND" not in content
        case "GIF":
            return not trimmed.endswith(b";")
        case "WEBP":
            return int.from_bytes(content[4:8], "little") + 8 > len(content)
        case "TIFF":
            order: Literal["little", "big"] = "little" if content.startswith(b"II") else "big"
            first_directory = content[8:16] if b"+" in content[:4] else content[4:8]
            return int.from_bytes(first_directory, order) + 2 > len(content)
        case "AVIF":
            return _boxes_end(content) > len(content)
    return False


def zeros_for_end(content: bytes) -> int:
    """Return the number of zeros that a JPEG has in place of its end, or 0 for complete and other files.

    An interrupted download into a file of preallocated length has such zeros. Decoders turn them into gray.
    """
    zeros = len(content) - len(content.rstrip(b"\0"))
    # Anything may follow the end of a complete JPEG, so search after the start of the last scan.
    scan = content.rfind(b"\xff\xda") if zeros and format_by_signature(content) == "JPEG" else -1
    return zeros if scan >= 0 and content.find(b"\xff\xd9", scan) < 0 else 0


def _boxes_end(content: bytes) -> int:
    """Return the end of the last top-level box of an ISO media file by its header (ISO/IEC 14496-12, 4.2)."""
    position = 0
    while position < len(content):
        length = int.from_bytes(content[position : position + 4], "big")
        if length == 1:
            length = int.from_bytes(content[position + 8 : position + 16], "big")
        elif length == 0:  # up to the end of the file
            return len(content)
        position += max(length, 8)
    return position
