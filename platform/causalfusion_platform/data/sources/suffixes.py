"""File suffixes by kind of content."""

from __future__ import annotations

IMAGE_SUFFIXES = frozenset(
    [
        *("jpg", "jpeg", "jpe", "jfif", "png", "apng", "webp", "gif", "bmp", "tif", "tiff"),
        *("ppm", "pgm", "pbm", "pnm", "jp2", "j2k", "avif", "tga", "ico"),
    ]
)
TAR = (".tar",)
PARQUET = (".parquet", ".pq")
COMPRESSED_TAR = tuple(
    ending for kind in ("gz", "bz2", "xz", "zst", "lz4", "z") for ending in (f".tar.{kind}", f".t{kind}")
)
