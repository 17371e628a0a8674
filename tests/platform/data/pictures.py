"""Image files made from real photographs, some for each kind of fault, for the tests of what reads them."""

from __future__ import annotations

import functools
import io
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_image

CROP = 64
"""Side of the crop that `faulty_images` is about."""


@dataclass(frozen=True)
class FaultyImage:
    """A file, and what is to be found about it by default."""

    content: bytes
    kinds: set[str]
    """Kinds of fault, by their names."""
    kept: bool
    """Whether it is encoded all the same."""


@functools.cache
def _photograph(name: str) -> NDArray[np.uint8]:
    if name == "chelsea":
        return np.asarray(Image.open(io.BytesIO(bundled("chelsea.png"))))
    return np.asarray(load_sample_image(f"{name}.jpg"), dtype=np.uint8)


def bundled(name: str) -> bytes:
    """Return a file that scikit-image ships."""
    return (files("skimage") / "data" / name).read_bytes()


def photo(width: int = 96, height: int = 80, name: str = "china") -> NDArray[np.uint8]:
    """Return a whole photograph (china, flower, chelsea) squeezed to (height, width, 3)."""
    return np.asarray(Image.fromarray(_photograph(name)).resize((width, height), Image.Resampling.BOX))


def saved(pixels: NDArray[Any] | Image.Image, image_format: str, **options: Any) -> bytes:
    """Return a picture as Pillow saves it."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def frames(pictures: Iterable[NDArray[np.uint8]], image_format: str, **options: Any) -> bytes:
    """Return several pictures as one file."""
    first, *rest = [Image.fromarray(pixels) for pixels in pictures]
    return saved(first, image_format, save_all=True, append_images=rest, **options)


def png_file(samples: NDArray[Any], colour: int, bits: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """Return (height, width[, channels]) samples as PNG, written by the specification's own terms.

    Args:
        samples: of at most `bits` bits.
        colour: PNG's colour type: 0 gray, 2 RGB, 3 palette, 4 gray with alpha, 6 RGB with alpha.
        bits: 1, 2, 4, 8 or 16.
        chunks: (type, data) between the header and the pixels.
    """
    height, width = samples.shape[:2]
    rows = samples.reshape(height, -1)
    if bits == 16:
        lines = [row.astype(">u2").tobytes() for row in rows]
    else:
        bit_rows = np.unpackbits(rows.astype(np.uint8)[..., None], axis=-1)[..., 8 - bits :].reshape(height, -1)
        lines = [np.packbits(row).tobytes() for row in bit_rows]
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + line for line in lines))
    parts = [(b"IHDR", header), *chunks, (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )


def tiff_file(width: int, height: int, data: bytes, tags: dict[int, int | tuple[int, ...]]) -> bytes:
    """Return a little-endian TIFF of one uncompressed strip; `tags` are of 16 bits, as 258, bits per sample."""
    entries: dict[int, int | tuple[int, ...]] = {256: width, 257: height, 259: 1, 278: height, **tags}
    beyond = b""
    start = 8 + 2 + 12 * (len(entries) + 2) + 4
    fields = {273: (4, 1, b""), 279: (4, 1, struct.pack("<I", len(data)))}
    for tag, value in entries.items():
        values = value if isinstance(value, tuple) else (value,)
        packed = struct.pack(f"<{len(values)}H", *values)
        if len(packed) > 4:
            beyond, packed = beyond + packed, struct.pack("<I", start + len(beyond))
        fields[tag] = (3, len(values), packed.ljust(4, b"\0"))
    fields[273] = (4, 1, struct.pack("<I", start + len(beyond)))
    directory = b"".join(struct.pack("<HHI", tag, *fields[tag][:2]) + fields[tag][2] for tag in sorted(fields))
    return b"II*\0" + struct.pack("<IH", 8, len(fields)) + directory + bytes(4) + beyond + data


def with_orientation(orientation: int) -> Image.Exif:
    """Return EXIF data that hold an orientation only."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def with_jpeg_size(content: bytes, width: int, height: int) -> bytes:
    """Return a baseline JPEG whose frame header claims another size."""
    start = content.index(b"\xff\xc0")
    return content[: start + 5] + struct.pack(">HH", height, width) + content[start + 9 :]


def with_flipped(content: bytes, position: int) -> bytes:
    """Return a file with the bits of one byte turned round."""
    return content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :]


@functools.cache
def faulty_images() -> dict[str, FaultyImage]:
    """Return files by their names: sound ones in every format, then each kind of fault that a file can have."""
    rgb, rgba = photo(), np.dstack([photo(), photo(name="flower")[..., 0]])
    gray = photo()[..., 1]
    jpeg, png = saved(rgb, "JPEG", quality=90), saved(rgb, "PNG")
    palette = Image.fromarray(rgb).quantize(64)
    progressive = saved(rgb, "JPEG", progressive=True)
    gif, webp = saved(palette, "GIF"), saved(rgb, "WEBP")
    several = [photo(), photo(name="flower"), photo(name="chelsea")]
    made: dict[str, tuple[bytes, set[str], bool]] = {
        "sound.jpg": (jpeg, set(), True),
        "sound_progressive.JPEG": (progressive, set(), True),
        "sound.png": (png, set(), True),
        "sound.webp": (webp, set(), True),
        "sound.bmp": (saved(rgb, "BMP"), set(), True),
        "sound.tif": (saved(rgb, "TIFF"), set(), True),
        "sound.ppm": (saved(rgb, "PPM"), set(), True),
        "sound.jp2": (saved(rgb, "JPEG2000"), set(), True),
        "sound.avif": (saved(rgb, "AVIF", speed=10), set(), True),
        "opaque.png": (saved(np.dstack([rgb, np.full_like(gray, 255)]), "PNG"), set(), True),
        "rocket.jpg": (bundled("rocket.jpg"), set(), True),
        "padded.jpg": (jpeg + bytes(100), set(), True),
        "zero_bytes.jpg": (b"", {"zero_bytes"}, False),
        "truncated.jpg": (jpeg[: len(jpeg) * 3 // 5], {"truncated"}, False),
        "truncated_progressive.jpg": (progressive[: len(progressive) * 4 // 5], {"truncated"}, False),
        "truncated_then_zeros.jpg": (jpeg[: len(jpeg) // 2].ljust(len(jpeg), b"\0"), {"truncated"}, False),
        "truncated.png": (png[: len(png) // 2], {"truncated"}, False),
        "truncated_in_the_header.png": (png[:11], {"truncated"}, False),
        "truncated_in_the_header.gif": (gif[:9], {"truncated"}, False),
        "truncated_in_the_header.bmp": (saved(rgb, "BMP")[:20], {"truncated"}, False),
        "truncated.gif": (gif[: len(gif) - 900], {"truncated"}, False),
        "truncated.webp": (webp[: len(webp) // 2], {"truncated"}, False),
        "truncated.bmp": (saved(rgb, "BMP")[:9000], {"truncated"}, False),
        "truncated.tif": (saved(rgb, "TIFF")[:9000], {"truncated"}, False),
        "truncated_lzw.tif": (saved(rgb, "TIFF", compression="tiff_lzw")[:9000], {"truncated"}, False),
        "truncated.jp2": (saved(rgb, "JPEG2000")[:6000], {"truncated"}, False),
        "truncated.avif": (saved(rgb, "AVIF", speed=10)[:-500], {"truncated"}, False),
        "truncated.ppm": (saved(rgb, "PPM")[:9000], {"truncated"}, False),
        "truncated16.ppm": (b"P6 96 80 65535\n" + rgb.tobytes(), {"truncated"}, False),
        "not_image.jpg": (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", {"not_image"}, False),
        "noise.dat": (bytes(range(256)) * 8, {"not_image"}, False),
        "corrupt.png": (with_flipped(png, len(png) // 2), {"corrupt"}, False),
        "corrupt_header.png": (with_flipped(png, 25), {"corrupt"}, False),
        "corrupt.jpg": (jpeg.replace(b"\xff\xdb", b"\xff\xfe"), {"corrupt"}, False),  # no quantization tables
        "cmyk.jpg": (saved(Image.fromarray(rgb).convert("CMYK"), "JPEG"), {"cmyk"}, True),
        "cmyk.tif": (saved(Image.fromarray(rgb).convert("CMYK"), "TIFF"), {"cmyk"}, True),
        "gray8.jpg": (saved(gray, "JPEG"), {"gray8"}, True),
        "camera.png": (bundled("camera.png"), {"gray8"}, True),
        "bilevel.png": (saved(gray > 128, "PNG"), {"gray8"}, True),
        "gray_alpha.png": (png_file(rgba[..., 2:], 4, 8), {"gray8", "transparency"}, True),
        "gray16.png": (saved(gray.astype(np.uint16) * 199, "PNG"), {"gray16"}, True),
        "gray16.tif": (saved(gray.astype(np.uint16) * 199, "TIFF"), {"gray16"}, True),
        "gray16.pgm": (b"P5 96 80 65535\n" + (gray.astype(">u2") * 199).tobytes(), {"gray16"}, True),
        "rgb16.png": (png_file(rgb.astype(np.uint16) * 199, 2, 16), {"rgb16"}, True),
        "rgb16.ppm": (b"P6 96 80 65535\n" + (rgb.astype(">u2") * 199).tobytes(), {"rgb16"}, True),
        "deep_float.tif": (saved(gray.astype(np.float32) / 255, "TIFF"), {"deep"}, False),
        "deep_int.tif": (saved(gray.astype(np.int32) * 70000, "TIFF"), {"deep"}, False),
        "palette.png": (saved(palette, "PNG"), {"palette"}, True),
        "palette.gif": (gif, {"palette"}, True),
        "palette_transparent.png": (saved(palette, "PNG", transparency=5), {"palette", "transparency"}, True),
        "transparency.png": (saved(rgba, "PNG"), {"transparency"}, True),
        "transparency.webp": (saved(rgba, "WEBP", lossless=True), {"transparency"}, True),
        "animated.webp": (frames(several, "WEBP", lossless=True, method=0), {"animated"}, True),
        "animated.png": (frames(several, "PNG"), {"animated"}, True),
        "animated.gif": (bundled("no_time_for_that_tiny.gif"), {"animated", "palette", "tiny"}, True),
        "pages.tif": (frames(several, "TIFF"), {"animated"}, True),
        "two_views.jpg": (frames(several, "MPO"), {"animated"}, True),
        "exif_rotation.jpg": (saved(rgb, "JPEG", exif=with_orientation(6)), {"exif_rotation"}, True),
        "exif_rotation.tif": (saved(rgb, "TIFF", exif=with_orientation(8)), {"exif_rotation"}, True),
        "tiny.jpg": (saved(photo(50, 70), "JPEG"), {"tiny"}, True),
        "one_pixel.png": (saved(photo(1, 1), "PNG"), {"tiny"}, True),
        "thin.png": (saved(np.repeat(photo(1, 1), 1_500_000, axis=1), "PNG"), {"tiny", "huge"}, False),
        "huge.jpg": (with_jpeg_size(jpeg, 65000, 65000), {"huge"}, False),
        "wrong_extension.jpg": (png, {"wrong_extension"}, True),
        "wrong_extension.png": (saved(gray, "JPEG"), {"wrong_extension", "gray8"}, True),
    }
    return {name: FaultyImage(*values) for name, values in made.items()}
