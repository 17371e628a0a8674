"""Squared distances between all features of two sets, block by block."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_ROWS, _COLUMNS = 2048, 8192


def squared_distances(a: Tensor, b: Tensor, *, half: bool = False) -> Tensor:
    """Return ‖a_i − b_j‖² (N, M) of features (N, F) and (M, F), as |a|² − 2ab + |b|².

    The computation is in float64. With `half` it is ADM's: features in float16 and every operation rounded to
    float16, unless that overflows anywhere in the block. With `half` the result is float32. Inception features have
    squared norms of some hundreds, so their distances come in steps of 1/8 to 1/2. Sums are added in float32
    before they are rounded. The order and precision of TensorFlow's sums depend on the device.
    """
    if half:
        distances = _in_half(a.half(), b.half())
        if distances.isfinite().all():
            return distances.float()
    a, b = a.double(), b.double()
    product = a @ b.T
    norms = a.square().sum(dim=1)[:, None] + b.square().sum(dim=1)
    distances = norms.sub_(product, alpha=2).clamp_(min=0)
    return distances.float() if half else distances


def _in_half(a: Tensor, b: Tensor) -> Tensor:
    norm_a, norm_b = (x.square().sum(dim=1, dtype=torch.float32).half() for x in (a, b))
    # Products of two float16 numbers are exact in float32 (and in TF32).
    product = (a.float() @ b.float().T).half()
    return (norm_a[:, None] - 2 * product + norm_b).clamp(min=0)


def distance_blocks(
    a: Tensor, b: Tensor, *, half: bool = False, device: torch.device | str = "cpu"
) -> Iterator[tuple[slice, Iterator[tuple[slice, Tensor]]]]:
    """Yield blocks of rows of `squared_distances`, and for each of them its blocks of columns.

    They are computed on `device`, which holds only two blocks of features and one of distances.
    """
    for rows in _slices(len(a), _ROWS):
        yield rows, _columns(a[rows].to(device), b, half, device)


def _columns(a: Tensor, b: Tensor, half: bool, device: torch.device | str) -> Iterator[tuple[slice, Tensor]]:
    for columns in _slices(len(b), _COLUMNS):
        yield columns, squared_distances(a, b[columns].to(device), half=half)


def _slices(length: int, size: int) -> Iterator[slice]:
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))
