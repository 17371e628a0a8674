"""Contents of ADM's `.npz` files as tensors: batches of images, and statistics. `data.npz` reads the files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..config.errors import UserError
from ..data.npz import STATISTICS_WANTED, Arrays, read_images
from .metrics.statistics import Statistics


def statistics_in(arrays: Arrays, suffix: str, path: Path) -> Statistics | None:
    """Return the statistics `mu` and `sigma` with a suffix, such as "_s", in float64. None: the file has none.

    Raises:
        UserError: one of the two is missing, or they are not (F,) and (F, F) finite numbers.
    """
    names = f"mu{suffix}", f"sigma{suffix}"
    found = [arrays[name] for name in names if name in arrays]
    if not found:
        return None
    if len(found) == 1:
        raise UserError(f"{path} has only one of {names[0]} and {names[1]}\n{STATISTICS_WANTED}")
    for name, array in zip(names, found, strict=True):
        if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
            raise UserError(
                f"{path}: {name} holds {array.dtype} values that are not all finite numbers\n{STATISTICS_WANTED}"
            )
    mean, covariance = (torch.from_numpy(np.array(array, np.float64)) for array in found)
    try:
        return Statistics(mean, covariance)
    except ValueError as error:
        raise UserError(f"{path}: {names[0]} and {names[1]} do not fit: {error}\n{STATISTICS_WANTED}") from error


def image_batches(path: Path, batch_size: int) -> Iterator[Tensor]:
    """Yield the images of a `.npz` as (B, C, H, W) uint8, in their order, a batch at a time.

    Raises:
        UserError: the file is missing or damaged, or its `arr_0` is not (N, H, W, C) uint8, C = 1 or 3.
    """
    for batch in read_images(path).batches(batch_size):
        yield torch.from_numpy(batch.transpose(0, 3, 1, 2).copy())
