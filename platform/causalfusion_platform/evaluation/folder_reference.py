"""Reference of the images in a folder: statistics of ADM's centre crops, one batch after the other.

Zero-shot FID-30k on COCO compares with all 40,504 images of val2014. Papers do not publish their statistics.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..config.errors import UserError
from ..data.faults import FAULT_KINDS, FaultStop, Policies, parse_policies
from ..data.images import decode_image
from ..data.npz import Arrays, read_arrays
from ..data.sources import Listing, Reader, open_images
from ..storage.atomic import replacing, write_atomically
from ..storage.json_file import Damaged, read_object
from .collect import BATCH_SIZE
from .extractors.extractor import Extractor
from .metrics.statistics import FeatureMoments
from .reference import Reference, write_reference
from .zero_shot_fid import CROP

logger = logging.getLogger(__name__)

Show = Callable[[int, int], None]
"""Called with the number of images done, and of all."""

POLICIES: Policies = parse_policies(
    [
        *(f"{kind.name}=stop" for kind in FAULT_KINDS.values() if "convert" not in kind.allowed),
        *(f"{name}=keep" for name in ("exif_rotation", "transparency")),
    ]
)
"""Images are taken as ADM's evaluation takes them. One that cannot be decoded ends the work: all of them count."""

_MOST_PIXELS = 1 << 28
_SAVED_EVERY_SECONDS = 60.0
"""Time between two saves of the work so far, each of 66 MB in the space of FID."""
_Decoded = tuple[NDArray[np.uint8], str, list[str]]
"""Crop of an image (size, size, 3), its line of the list, and its faults."""
_IDENTITY, _LINES, _FAULTS = "identity", "lines", "faults"


@dataclass(frozen=True)
class FolderRecord:
    """Record of a reference: all that its statistics depend on."""

    images: int
    folder: str
    """Name of the folder. Another place of the same images gives the same statistics."""
    size: int
    """Side of the crops, in pixels."""
    crop: str
    space: str
    weights_sha256: str
    """SHA-256 of the extractor's weights."""
    listing_sha256: str
    """SHA-256 over the names and sizes of the files."""
    images_sha256: str
    """SHA-256 of the list of files, a line each: the SHA-256 of its content, two blanks, its name."""
    faults: dict[str, int]
    """Fault of images that were converted, or kept as ADM keeps them → count."""

    @property
    def source(self) -> str:
        """Description of the images, which the record of every metric against them repeats."""
        return (
            f"{self.images:,} images of {self.folder}, {self.crop} to {self.size}×{self.size} "
            f"(SHA-256 {self.images_sha256[:12]}…)"
        )


def record_path(reference: Path) -> Path:
    """Return the place of the record of a reference: `val2014.record.json` of `val2014.npz`."""
    return reference.with_suffix(".record.json")


def files_path(reference: Path) -> Path:
    """Return the place of the list of its files: `val2014.sha256`, which `sha256sum --check` reads."""
    return reference.with_suffix(".sha256")


def write_folder_reference(
    folder: str,
    out: Path,
    extractor: Extractor,
    *,
    size: int,
    expected: int | None,
    show: Show = lambda *_: None,
) -> FolderRecord:
    """Write the reference of all images of a folder, its record, and the list of its files.

    The same call continues one that was ended, to the same bytes. Memory does not grow with the number of images.

    Args:
        folder: path or URL of a folder. Images below it count, by their suffix. Other files do not.
        out: the .npz to write, for `--reference`.
        extractor: network of the features.
        size: side of ADM's centre crop, in pixels.
        expected: images that there must be. None: any number above one.
        show: called with progress.

    Raises:
        UserError: images are missing or too many, one cannot be decoded, or `out` is of others.
    """
    if out.suffix != ".npz":
        raise UserError(f"{out} does not end in .npz\n  name a file such as {out.with_suffix('.npz')}")
    source = open_images(folder)
    listing = source.listing()
    _check_count(listing, expected)
    identity = {
        "size": size,
        "crop": CROP,
        "space": extractor.space,
        "weights_sha256": extractor.digest,
        "listing_sha256": listing.digest,
    }
    if (known := _known(out, identity)) is not None:
        return known
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f"{out.name}.part")
    work = _Work.read(part, identity, extractor) or _Work(identity)
    if work.count:
        logger.info(f"{work.count:,} of {listing.table.num_rows:,} images are done; going on")
    saved = time.monotonic()
    for crops, lines, faults in _batches(listing, source.reader, size, work.count):
        work.add(extractor, crops, lines, faults)
        show(work.count, listing.table.num_rows)
        if time.monotonic() - saved >= _SAVED_EVERY_SECONDS:
            work.write(part)
            saved = time.monotonic()
    record = _write(out, work, folder, extractor)
    part.unlink(missing_ok=True)
    return record


def _check_count(listing: Listing, expected: int | None) -> None:
    found = listing.table.num_rows
    if expected is not None and found != expected:
        raise UserError(
            f"{listing.location} holds {_count(found)}, not {expected:,}\n"
            f"  name the folder of all of them, or state another number: --images {found} (0: any)"
        )
    if found < 2:
        raise UserError(f"{listing.location} holds {_count(found)}, but a covariance needs at least 2")


def _count(images: int) -> str:
    return "1 image" if images == 1 else f"{images:,} images"


def _known(out: Path, identity: dict[str, object]) -> FolderRecord | None:
    """Return the record of a finished reference of these images. None: the file has yet to be made.

    Raises:
        UserError: the file is there, and is not such a reference.
    """
    if not out.exists():
        return None
    try:
        record = FolderRecord(**read_object(record_path(out)))
        same = {key: getattr(record, key) for key in identity} == identity
    except (FileNotFoundError, Damaged, TypeError):
        same = False
    if not same:
        raise UserError(
            f"{out} is there, of other images, another size or other weights\n"
            f"  name another file, or remove this one"
        )
    return record


class _Work:
    """Statistics of the first images, with the list of their files. They are all that goes on needs."""

    def __init__(self, identity: dict[str, object]) -> None:
        self.identity = identity
        self.pool: FeatureMoments | None = None
        self.spatial: FeatureMoments | None = None
        self.lines: list[str] = []
        self.faults: Counter[str] = Counter()

    @property
    def count(self) -> int:
        """Images done."""
        return len(self.lines)

    def add(self, extractor: Extractor, crops: Tensor, lines: list[str], faults: Counter[str]) -> None:
        """Count a batch of images (B, 3, size, size) uint8."""
        features = extractor.features(crops)
        if self.pool is None:
            self.pool = FeatureMoments(features.pool.shape[1], extractor.device)
            if features.spatial is not None:
                self.spatial = FeatureMoments(features.spatial.shape[1], extractor.device)
        self.pool.add(features.pool)
        if self.spatial is not None and features.spatial is not None:
            self.spatial.add(features.spatial)
        self.lines += lines
        self.faults.update(faults)

    def write(self, path: Path) -> None:
        """Keep the work so far."""
        arrays = {
            _IDENTITY: np.array(json.dumps(self.identity, sort_keys=True)),
            _LINES: np.array("\n".join(self.lines)),
            _FAULTS: np.array(json.dumps(self.faults)),
        }
        for suffix, moments in (("", self.pool), ("_s", self.spatial)):
            if moments is not None:
                arrays[f"mean{suffix}"] = moments.mean.cpu().numpy()
                arrays[f"scatter{suffix}"] = moments.scatter.cpu().numpy()
        with replacing(path) as file:
            np.savez(file, allow_pickle=False, **arrays)

    @classmethod
    def read(cls, path: Path, identity: dict[str, object], extractor: Extractor) -> _Work | None:
        """Return the work that an ended call kept. None: it is missing, or of other images or weights."""
        if not path.is_file():
            return None
        try:
            arrays = read_arrays(path)
            if str(arrays[_IDENTITY]) != json.dumps(identity, sort_keys=True):
                raise ValueError("it is of other images, another size or other weights")
            work = cls(identity)
            work.lines = str(arrays[_LINES]).split("\n")
            work.faults = Counter(json.loads(str(arrays[_FAULTS])))
            work.pool = _moments(arrays, "", work.count, extractor)
            work.spatial = _moments(arrays, "_s", work.count, extractor) if "mean_s" in arrays else None
        except (UserError, KeyError, ValueError) as error:
            logger.info(f"{path} is not gone on from: {error}")
            return None
        return work


def _moments(arrays: Arrays, suffix: str, count: int, extractor: Extractor) -> FeatureMoments:
    mean, scatter = arrays[f"mean{suffix}"], arrays[f"scatter{suffix}"]
    moments = FeatureMoments(len(mean), extractor.device)
    moments.count = count
    moments.mean.copy_(torch.from_numpy(mean))
    moments.scatter.copy_(torch.from_numpy(scatter))
    return moments


def _write(out: Path, work: _Work, folder: str, extractor: Extractor) -> FolderRecord:
    """Write the list, the record and then the statistics, whose file says that all are there."""
    assert work.pool is not None
    listed = "".join(f"{line}\n" for line in work.lines).encode()
    record = FolderRecord(
        images=work.count,
        folder=Path(folder).absolute().name,
        images_sha256=hashlib.sha256(listed).hexdigest(),
        faults=dict(sorted(work.faults.items())),
        **work.identity,  # type: ignore[arg-type]
    )
    write_atomically(files_path(out), listed)
    write_atomically(record_path(out), f"{json.dumps(dataclasses.asdict(record), indent=2)}\n".encode())
    reference = Reference(
        space=extractor.space,
        digest=extractor.digest,
        source=record.source,
        pool=work.pool.statistics(),
        spatial=None if work.spatial is None else work.spatial.statistics(),
        image_size=record.size,
    )
    write_reference(out, reference)
    return record


def _batches(
    listing: Listing, reader: Callable[[], Reader], size: int, start: int
) -> Iterator[tuple[Tensor, list[str], Counter[str]]]:
    """Yield crops (B, 3, size, size) uint8, their lines of the list, and their faults, from image `start` on.

    Batches are cut at multiples of their size. The next one is decoded while the extractor works.

    Raises:
        UserError: an image cannot be decoded.
    """
    total = listing.table.num_rows
    with ThreadPoolExecutor() as threads:

        def begin(at: int) -> list[Future[_Decoded]]:
            rows = listing.table.slice(at, min(BATCH_SIZE, total - at))
            return [threads.submit(_decode, rows.slice(place, 1), reader(), size) for place in range(len(rows))]

        following = begin(start) if start < total else []
        for at in range(start, total, BATCH_SIZE):
            decoding, following = following, begin(at + BATCH_SIZE) if at + BATCH_SIZE < total else []
            try:
                done = [one.result() for one in decoding]
            except FaultStop as stop:
                threads.shutdown(cancel_futures=True)
                kind = FAULT_KINDS[stop.finding.kind]
                raise UserError(
                    f"image {stop.key}: {kind.name} ({kind.meaning}): {stop.finding.detail}\n"
                    f"  mend it: every image is a part of the reference. The same command goes on"
                ) from stop
            crops = torch.from_numpy(np.stack([crop for crop, _, _ in done]).transpose(0, 3, 1, 2).copy())
            yield crops, [line for _, line, _ in done], Counter(kind for _, _, kinds in done for kind in kinds)


def _decode(row: pa.Table, reader: Reader, size: int) -> _Decoded:
    [content], key = reader.read(row), row.column("key")[0].as_py()
    crop, findings = decode_image(content, key, size, POLICIES, _MOST_PIXELS)
    assert crop is not None  # faults that lose an image stop
    assert isinstance(content, bytes)
    return crop, f"{hashlib.sha256(content).hexdigest()}  {key}", [finding.kind for finding in findings]
