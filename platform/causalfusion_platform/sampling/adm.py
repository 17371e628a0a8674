"""Write sample sets in ADM's layout: an .npz with `arr_0`, uint8 (N, H, W, 3), and `arr_1`, the labels.

Written in parts: 50,000 images of 256×256 pixels are 9.8 GB. `data.npz` reads them.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from ..data.npz import IMAGES, LABELS
from ..storage.atomic import replacing
from .pixels import Pixels


def write_adm(
    path: Path, images: Iterable[Pixels], num: int, size: tuple[int, int], labels: NDArray[np.int64] | None = None
) -> None:
    """Write a sample set atomically, with the same bytes as `numpy.savez(path, images, labels)`.

    Args:
        images: all images in parts, (n, H, W, 3) each.
        num: N, the number of images.
        size: H and W.
        labels: classes (N,). None: the samples have no classes, and the file no `arr_1`.

    Raises:
        ValueError: `images` or labels are more or fewer, or images of another size or type.
    """
    if labels is not None and len(labels) != num:
        raise ValueError(f"{num} images need as many labels, got {len(labels)}")
    written = 0
    header = {"descr": "|u1", "fortran_order": False, "shape": (num, *size, 3)}
    with replacing(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        with archive.open(f"{IMAGES}.npy", "w", force_zip64=True) as member:
            npy.write_array_header_1_0(member, header)
            for some in images:
                if some.dtype != np.uint8 or some.shape[1:] != (*size, 3):
                    raise ValueError(
                        f"images must be (n, {size[0]}, {size[1]}, 3) uint8, got {some.shape} {some.dtype}"
                    )
                member.write(np.ascontiguousarray(some).data)
                written += len(some)
        if written != num:
            raise ValueError(f"{num} images were announced, got {written}")
        if labels is None:
            return
        with archive.open(f"{LABELS}.npy", "w", force_zip64=True) as member:
            npy.write_array(member, np.asarray(labels, np.int64), allow_pickle=False)
