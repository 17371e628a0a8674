"""ADM's `.npz` files: batches of images (`arr_0`), and statistics (`mu`, `sigma`, `mu_s`, `sigma_s`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..config.errors import UserError
from ..data.npz import DAMAGE, IMAGES, read_images
from .metrics.statistics import Statistics

_WANTED = (
    "  wanted: a .npz as ADM's evaluator takes it, with mu (F,) and sigma (F, F), perhaps mu_s and sigma_s, or "
    "with images arr_0 (N, H, W, 3) uint8"
)


Arrays = dict[str, NDArray[np.generic]]


def read_arrays(path: Path) -> Arrays:
    """Return the arrays of a `.npz` by name, all but its images. No pickled object is read.

    Raises:
        UserError: there is no such file, or it is damaged or no `.npz`.
    """
    _check(path)
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("it holds one array alone")
        with file:
            return {name: file[name] for name in file.files if name != IMAGES}
    except DAMAGE as error:
        raise UserError(f"{path} cannot be read: {error}\n{_WANTED}") from error


def statistics_in(arrays: Arrays, suffix: str, path: Path) -> Statistics | None:
    """Return the statistics `mu` and `sigma` with a suffix, such as "_s", in float64; None: there are none.

    Raises:
        UserError: one of the two is missing, or they are not (F,) and (F, F) finite numbers.
    """
    names = f"mu{suffix}", f"sigma{suffix}"
    found = [arrays[name] for name in names if name in arrays]
    if not found:
        return None
    if len(found) == 1:
        raise UserError(f"{path} has only one of {names[0]} and {names[1]}\n{_WANTED}")
    for name, array in zip(names, found, strict=True):
        if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
            raise UserError(f"{path}: {name} holds {array.dtype} values that are not all finite numbers\n{_WANTED}")
    mean, covariance = (torch.from_numpy(np.array(array, np.float64)) for array in found)
    try:
        return Statistics(mean, covariance)
    except ValueError as error:
        raise UserError(f"{path}: {names[0]} and {names[1]} do not fit: {error}\n{_WANTED}") from error


def image_batches(path: Path, batch_size: int) -> Iterator[Tensor]:
    """Yield the images of a `.npz` as (B, C, H, W) uint8, in their order, without reading all of them at once.

    Raises:
        UserError: there is no such file, it is damaged, or its `arr_0` is not (N, H, W, C) uint8, C = 1 or 3.
    """
    for batch in read_images(path).batches(batch_size):
        yield torch.from_numpy(batch.transpose(0, 3, 1, 2).copy())


def _check(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"no file {path}\n{_WANTED}")
