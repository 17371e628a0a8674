"""Bundled data set: scikit-learn's handwritten digits with pixels as latents (the identity autoencoder)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..config.errors import UserError
from .layout import manifest_path
from .manifest import AutoencoderId, Description, Manifest, SourceId, Split
from .shards import Rows, is_replaceable, write_shards

NUM_ROWS, SHAPE = 1797, (1, 8, 8)
"""Number of digits, and shape of one: known without scikit-learn."""
SOURCE = "scikit-learn handwritten digits (UCI optdigits test set), 1797 gray images of 8x8"


def digits() -> Rows:
    """Return the 1,797 digits: latents (1797, 1, 8, 8) are the pixels 0…16 mapped to [−1, 1], exact in fp16.

    Mirrored digits are not digits, so mirrored latents are left out.
    """
    from sklearn.datasets import load_digits  # takes a second to import

    images, labels = load_digits(return_X_y=True)
    return Rows(
        row_ids=np.arange(len(labels)),
        labels=labels.astype(np.int64),
        keys=[f"digits/{row:04d}" for row in range(len(labels))],
        mean=(images.reshape(-1, 1, 8, 8) / 8 - 1).astype(np.float16),
    )


def write_digits(folder: Path, *, rows_per_shard: int = 450, rows_per_group: int = 128) -> Manifest:
    """Write the digits as latent shards into `folder`, in place of those of an earlier call."""
    description = description_of_digits(SOURCE)
    return write_shards(digits(), description, folder, rows_per_shard=rows_per_shard, rows_per_group=rows_per_group)


def description_of_digits(location: str, *, captions: bool = False, split: Split = "train") -> Description:
    """Return the description of shards of digits, whose source is named by `location`."""
    return Description(
        split=split,
        source=SourceId(kind="bundled", location=location, items=NUM_ROWS, digest=""),
        autoencoder=AutoencoderId(name="identity", scale=1.0),
        shape=SHAPE,
        captions=captions,
        class_names=[str(digit) for digit in range(10)],
    )


def ensure_digits(folder: Path) -> Manifest:
    """Return the manifest of `folder`. Write the digits first if it is missing or of an older version."""
    if manifest_path(folder).is_file():
        try:
            return Manifest.read(folder)
        except UserError:
            if not is_replaceable(folder):
                raise
    return write_digits(folder)
