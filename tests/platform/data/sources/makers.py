"""Real images, and sources made of them."""

from __future__ import annotations

import functools
import io
import tarfile
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from causalfusion_platform.data.faults import Policies, parse_policies
from causalfusion_platform.data.sources import Listing, Source

STRICT = parse_policies([])


def allow(*settings: str) -> Policies:
    """Return the default policies with some changed."""
    return parse_policies(settings)


@functools.cache
def photograph(name: str) -> bytes:
    """Return a JPEG file that scikit-learn ships: china or flower."""
    return resources.files("sklearn.datasets.images").joinpath(f"{name}.jpg").read_bytes()


@functools.cache
def digit(row: int) -> bytes:
    """Return a digit of scikit-learn's as a PNG file; no two rows of the first 100 give the same."""
    file = io.BytesIO()
    Image.fromarray((load_digits().images[row] * 15).astype(np.uint8)).save(file, "png")
    return file.getvalue()


def write_files(folder: Path, contents: Mapping[str, bytes | str]) -> Path:
    """Write files below a folder."""
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def write_tar(path: Path, members: Iterable[tuple[str, bytes | str]]) -> Path:
    """Write a tar with members in the given order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            data = content if isinstance(content, bytes) else content.encode()
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return path


def keys_of(listing: Listing) -> list[str]:
    """Return the keys of a listing."""
    keys: list[str] = listing.table["key"].to_pylist()
    return keys


def labels_of(listing: Listing) -> dict[str, str]:
    """Return the name of each key's class."""
    labels = listing.table["label"].to_pylist()
    return {key: listing.class_names[label] for key, label in zip(keys_of(listing), labels, strict=True)}


def contents_of(source: Source) -> dict[str, bytes | OSError]:
    """Read a whole source."""
    listing = source.listing()
    return dict(zip(keys_of(listing), source.reader().read(listing.table), strict=True))


def left_out(listing: Listing) -> list[tuple[str, str]]:
    """Return key and kind of what was left out."""
    return [(key, finding.kind) for key, finding in listing.findings]
