"""Reference that samples are compared with: statistics of real images and, where known, their features."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..config.errors import UserError
from ..data.manifest import sha256_of
from ..data.npz import IMAGES, Arrays, holds_array, read_arrays, read_images
from ..storage.atomic import replacing
from .collect import BATCH_SIZE, Collected, collect
from .extractors.extractor import Extractor
from .extractors.inception import POOL_WIDTH, SPATIAL_WIDTH
from .extractors.inception_extractor import FID_DIGEST, FID_SPACE
from .metrics.statistics import Statistics
from .npz import image_batches, statistics_in

_FEATURES, _SPACE, _DIGEST, _SOURCE, _SIZE = "features", "space", "digest", "source", "image_size"


@dataclass(frozen=True)
class Reference:
    """Real images in the space of one extractor."""

    space: str
    digest: str
    """SHA-256 of the extractor's weights."""
    source: str
    """Description of the images behind the statistics."""
    pool: Statistics
    spatial: Statistics | None = None
    """Statistics of the spatial features. None: not known, and sFID is left out."""
    features: Tensor | None = None
    """Pool features (N, F) float32. None: not known, and precision and recall are left out."""
    image_size: int | None = None
    """Side of the images, in pixels. None: not known."""


def check_size(reference_size: int | None, size: int, named: str) -> None:
    """Check that images of `size`×`size` pixels may be compared with a reference.

    Args:
        reference_size: side of the reference's images. None: not known, and not compared.
        size: side of the samples.
        named: name of the reference, for the message.

    Raises:
        UserError: the reference is of images of another size.
    """
    if reference_size not in (None, size):
        raise UserError(
            f"the reference ({named}) is of images of {reference_size}×{reference_size} pixels, the samples have "
            f"{size}×{size}\n  name one of images of that size: --reference FILE"
        )


def size_in(path: Path) -> int | None:
    """Return the side of the images behind a reference file, without reading them. None: the file does not say.

    Raises:
        UserError: the file is missing or damaged.
    """
    arrays = read_arrays(path)
    if holds_array(path, IMAGES):
        return read_images(path).shape[1]
    return _size_in(arrays)


def _size_in(arrays: Arrays) -> int | None:
    size = arrays.get(_SIZE)
    return int(size) if size is not None and size.ndim == 0 and size.dtype.kind in "iu" else None


def reference_from_images(
    batches: Iterable[Tensor], extractor: Extractor, *, source: str, keep: bool = True
) -> Reference:
    """Extract the reference from batches of real images (B, C, H, W) uint8.

    Args:
        keep: if true, keep their features, for precision and recall. They take 8 kB an image in the space of FID.

    Raises:
        ValueError: fewer than two images.
    """
    return _reference(collect(extractor, batches, keep=keep), extractor, source)


def read_reference(path: Path, extractor: Extractor, *, batch_size: int = BATCH_SIZE) -> Reference:
    """Read a file of `write_reference`, or a reference file of ADM.

    ADM's files do not name their space, which is that of FID. They hold statistics of a whole data set, and 10,000
    of its images in `arr_0`. The features of these images are extracted for precision and recall, as ADM's
    evaluator does. In any other space the statistics are of those images too, since the file's do not apply there.

    Raises:
        UserError: the file is missing or damaged, or holds nothing for the extractor's space.
    """
    arrays = read_arrays(path)
    space = str(arrays.get(_SPACE, FID_SPACE)), str(arrays.get(_DIGEST, FID_DIGEST))
    pool, spatial = statistics_in(arrays, "", path), statistics_in(arrays, "_s", path)
    usable = pool is not None and space == (extractor.space, extractor.digest)
    images = (
        _collected(path, extractor, batch_size) if holds_array(path, IMAGES) and _FEATURES not in arrays else None
    )
    if not usable:
        if images is None:
            holds = f"statistics in the space {space[0]} (weights {space[1][:12]}…)" if pool else "no statistics"
            raise UserError(
                f"{path} holds {holds} and no images {IMAGES}; the extractor's space is {extractor.space} (weights "
                f"{extractor.digest[:12]}…)\n  take the extractor of those statistics, or a reference with images"
            )
        return _reference(images, extractor, source=f"images in {_named(path)}")
    assert pool is not None
    if extractor.space == FID_SPACE:
        _check_widths(pool, spatial, path)
    features = None if images is None else images.features
    if _FEATURES in arrays:
        features = _features_in(arrays[_FEATURES], pool, path)
    source = str(arrays.get(_SOURCE, f"statistics in {_named(path)}"))
    size = _size_in(arrays) if images is None else images.image_size
    return Reference(*space, source=source, pool=pool, spatial=spatial, features=features, image_size=size)


def _named(path: Path) -> str:
    # The digest keeps two files of the same name apart, whose results are not comparable.
    return f"{path.name} (SHA-256 {sha256_of(path)[:12]}…)"


def write_reference(path: Path, reference: Reference) -> None:
    """Write a reference: arrays named as in ADM's files, with the space, the weights' SHA-256 and the source."""
    arrays = {
        _SPACE: np.array(reference.space),
        _DIGEST: np.array(reference.digest),
        _SOURCE: np.array(reference.source),
    }
    for suffix, statistics in (("", reference.pool), ("_s", reference.spatial)):
        if statistics is not None:
            arrays[f"mu{suffix}"] = statistics.mean.numpy()
            arrays[f"sigma{suffix}"] = statistics.covariance.numpy()
    if reference.image_size is not None:
        arrays[_SIZE] = np.array(reference.image_size)
    if reference.features is not None:
        arrays[_FEATURES] = reference.features.numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        np.savez(file, allow_pickle=False, **arrays)


def _collected(path: Path, extractor: Extractor, batch_size: int) -> Collected:
    """Return the features of the images in a file, at least two of them."""
    try:
        collected = collect(extractor, image_batches(path, batch_size))
        collected.pool.statistics()
    except ValueError as error:
        raise UserError(f"{path} is of no use as a reference: {error}") from error
    return collected


def _reference(collected: Collected, extractor: Extractor, source: str) -> Reference:
    return Reference(
        space=extractor.space,
        digest=extractor.digest,
        source=source,
        pool=collected.pool.statistics(),
        spatial=None if collected.spatial is None else collected.spatial.statistics(),
        features=collected.features,
        image_size=collected.image_size,
    )


def _check_widths(pool: Statistics, spatial: Statistics | None, path: Path) -> None:
    for name, statistics, width in (("mu", pool, POOL_WIDTH), ("mu_s", spatial, SPATIAL_WIDTH)):
        if statistics is not None and len(statistics.mean) != width:
            raise UserError(
                f"{path}: {name} is of {len(statistics.mean)} features; those of FID are {POOL_WIDTH}, those of "
                f"sFID {SPATIAL_WIDTH}"
            )


def _features_in(array: NDArray[np.generic], pool: Statistics, path: Path) -> Tensor:
    if array.dtype != np.float32 or array.ndim != 2 or array.shape[1] != len(pool.mean):
        raise UserError(f"{path}: features are {array.shape} {array.dtype}; wanted: (N, {len(pool.mean)}) float32")
    return torch.from_numpy(array)
