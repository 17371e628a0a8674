"""The embedded data set: scikit-learn's handwritten digits, pixels as latents (the identity autoencoder)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from .manifest import MANIFEST_FILE, Manifest
from .shards import Latents, write_shards

SOURCE = "scikit-learn handwritten digits (UCI optdigits test set), 1797 gray images of 8x8"


def digits() -> Latents:
    """Return the 1,797 digits: latents (1797, 1, 8, 8) are the pixels 0…16 mapped to [−1, 1], exact in fp16."""
    images, labels = load_digits(return_X_y=True)
    latents = (images.reshape(-1, 1, 8, 8) / 8 - 1).astype(np.float16)
    return Latents(
        source=SOURCE,
        autoencoder="identity",
        scale=1.0,
        class_names=[str(digit) for digit in range(10)],
        latents=latents,
        labels=labels.astype(np.int64),
    )


def write_digits(folder: Path, *, rows_per_shard: int = 450, rows_per_group: int = 128) -> Manifest:
    """Write the digits as latent shards into `folder`, replacing what an earlier call left there."""
    return write_shards(digits(), folder, rows_per_shard=rows_per_shard, rows_per_group=rows_per_group)


def ensure_digits(folder: Path) -> Manifest:
    """Return the manifest of `folder`, writing the digits first if there is none."""
    return Manifest.read(folder) if (folder / MANIFEST_FILE).is_file() else write_digits(folder)
