"""Parts of a sample set under way. A finished part is a file with its SHA-256 in its name."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..config.errors import UserError
from ..data.manifest import sha256_of
from ..storage.atomic import write_atomically
from .pixels import Pixels

PARTS_FOLDER = "parts"

_PART_NAME = re.compile(r"part-(\d{6})\.([0-9a-f]{64})\.npy")


@dataclass(frozen=True)
class SamplePart:
    """A finished part."""

    index: int
    path: Path
    sha256: str

    def read(self) -> Pixels:
        """Return its images (n, H, W, 3).

        Raises:
            UserError: the file has changed since it was written.
        """
        try:
            content = self.path.read_bytes()
        except OSError:
            content = b""
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise UserError(f"{self.path} has changed since it was written\n  the same command makes it again")
        images: Pixels = np.load(io.BytesIO(content), allow_pickle=False)
        return images


def write_part(folder: Path, index: int, images: Pixels) -> SamplePart:
    """Write the images of a part, atomically."""
    buffer = io.BytesIO()
    np.save(buffer, images, allow_pickle=False)
    content = buffer.getvalue()
    sha256 = hashlib.sha256(content).hexdigest()
    parts = folder / PARTS_FOLDER
    parts.mkdir(exist_ok=True)
    path = parts / f"part-{index:06d}.{sha256}.npy"
    write_atomically(path, content)
    return SamplePart(index, path, sha256)


def finished_parts(folder: Path) -> dict[int, SamplePart]:
    """Return the finished parts that are unchanged, reading every byte. Remove all others."""

    def look(path: Path) -> SamplePart | None:
        match = _PART_NAME.fullmatch(path.name)
        if match and sha256_of(path) == match[2]:
            return SamplePart(int(match[1]), path, match[2])
        path.unlink()  # half written, or damaged since
        return None

    with ThreadPoolExecutor() as threads:
        found = list(threads.map(look, sorted((folder / PARTS_FOLDER).glob("*part-*"))))
    return {part.index: part for part in found if part is not None}


def part_images(parts: Mapping[int, SamplePart]) -> Iterator[Pixels]:
    """Yield the images of all parts, in order.

    Raises:
        UserError: a part has changed since it was written.
    """
    for index in sorted(parts):
        yield parts[index].read()
