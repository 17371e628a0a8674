"""Data that is written before a run starts: the bundled digits, those of MNIST, and subsets of shards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..config.schema import DataConfig
from .captioned_digits import ensure_captioned_digits, ensure_captioned_mnist
from .digits import ensure_digits
from .layout import manifest_path
from .manifest import Manifest
from .mnist import ensure_mnist
from .split_digits import ensure_split_digits
from .subset import ensure_subset

_WRITERS: dict[bool | str, Callable[[Path], Manifest]] = {
    True: ensure_digits,
    "split": ensure_split_digits,
    "captions": ensure_captioned_digits,
    "mnist": ensure_mnist,
    "mnist-captions": ensure_captioned_mnist,
}
"""Value of data.prepare → what writes the data."""


def prepare_data(data: DataConfig) -> None:
    """Write the shards that a run trains on, if they are to be written and are not there.

    Raises:
        UserError: a folder holds other shards, or shards of a subset are missing.
    """
    subset = data.subset
    if data.prepare:
        _WRITERS[data.prepare](data.path if subset is None else subset.of)
    if subset is not None:
        ensure_subset(subset.of, data.path, per_class=subset.per_class, seed=subset.seed)


def is_written_later(data: DataConfig) -> bool:
    """Return whether the shards of training are written when a run starts."""
    return bool(data.prepare or data.subset) and not manifest_path(data.path).is_file()
