"""The bundled digits with captions: 1,497 training rows, and 300 validation rows in a sibling folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..config.commands import command
from ..config.errors import UserError
from .caption_language import PropertyWords, captions_of, describe
from .digits import NUM_ROWS, SOURCE, description_of_digits, digits
from .layout import manifest_path
from .manifest import Manifest
from .passes import latents_of, read_groups
from .shards import Rows, check_replaceable, is_replaceable, write_shards

VALIDATION_ROWS = 300
"""Rows that no training sees. All others are training rows."""
TRAIN_ROWS = NUM_ROWS - VALIDATION_ROWS
_SUFFIX = "-validation"
_SOURCE = re.compile(rf"{re.escape(SOURCE)}; (training|validation|held-out) rows of split (\d+)")
"""Source of a part. Earlier versions wrote `held-out` for `validation`, and the suffix -heldout."""


class Split(NamedTuple):
    """Row ids of both parts, ascending."""

    train: NDArray[np.int64]
    """(1497,)"""
    validation: NDArray[np.int64]
    """(300,)"""


class CaptionedDigits(NamedTuple):
    """Manifests of both folders."""

    train: Manifest
    validation: Manifest


def split_rows(seed: int) -> Split:
    """Return the split of scikit-learn's `train_test_split(test_size=300, random_state=seed)`.

    Anyone can make the same split without this package.
    """
    from sklearn.model_selection import train_test_split  # takes a second to import

    train, validation = train_test_split(np.arange(NUM_ROWS), test_size=VALIDATION_ROWS, random_state=seed)
    return Split(np.sort(train), np.sort(validation))


def location(part: Literal["training", "validation"], seed: int) -> str:
    """Return the name of the source of one part, in its manifest."""
    return f"{SOURCE}; {part} rows of split {seed}"


def validation_folder(folder: Path) -> Path:
    """Return the folder of the validation rows beside `folder`, which holds the training rows."""
    if folder.name in ("", ".."):
        folder = folder.resolve()
    return folder.with_name(f"{folder.name}{_SUFFIX}")


def write_captioned_digits(folder: Path, *, seed: int = 0) -> CaptionedDigits:
    """Write both parts as latent shards with five captions a row, in place of those of an earlier call.

    The same seed gives the same bytes.

    Args:
        folder: folder of the training rows. The validation rows go into `validation_folder(folder)`.
        seed: seed of the split.

    Raises:
        UserError: the folder of the validation rows holds anything else.
    """
    check_replaceable(validation_folder(folder))
    manifest_path(folder).unlink(missing_ok=True)  # written last: rows of one split never lie beside another's
    split = split_rows(seed)
    validation = _write(validation_folder(folder), split.validation, location("validation", seed))
    return CaptionedDigits(_write(folder, split.train, location("training", seed)), validation)


def ensure_captioned_digits(folder: Path) -> Manifest:
    """Return the manifest of `folder`. Write what is missing of both parts first, with seed 0 for a new folder.

    Raises:
        UserError: the folder holds the digits without captions, or shards that were not written by the platform.
    """
    if manifest_path(folder).is_file():
        try:
            manifest = Manifest.read(folder)
        except UserError:
            if not is_replaceable(folder):
                raise
        else:
            _restore_validation(folder, manifest)
            return manifest
    return write_captioned_digits(folder).train


def is_captioned_digits(manifest: Manifest) -> bool:
    """Return whether shards are a part of the bundled digits with captions."""
    return manifest.captions and _SOURCE.fullmatch(manifest.source.location) is not None


def digits_command(folder: Path, manifest: Manifest) -> str:
    """Return the command that writes the bundled digits of a manifest, with or without captions, into `folder`."""
    found = _SOURCE.fullmatch(manifest.source.location)
    if found is None:
        return command("data", "digits", folder)
    part, seed = found.groups()
    if part != "training":
        folder = folder.with_name(re.sub(r"(?<=.)-(validation|heldout)$", "", folder.name))
    return command("data", "digits", folder, "--captions", *(["--seed", seed] if int(seed) else []))


def words_in(folder: Path, manifest: Manifest) -> list[PropertyWords]:
    """Return the words of the rows of shards, measured on their images, in the order of the shards.

    Raises:
        UserError: a shard is damaged. The message names it.
        ValueError: the shards do not hold images of digits.
    """
    words: list[PropertyWords] = []
    for shard in manifest.shards:
        for table in read_groups(folder, shard, ["label", "mean"]):
            labels = torch.from_numpy(table.column("label").to_numpy().copy())
            words += describe(torch.from_numpy(latents_of(table, "mean").copy()), labels)
    return words


def cells_in(folder: Path, manifest: Manifest) -> frozenset[PropertyWords]:
    """Return the property cells of the rows of shards. All others of `CELLS` are unseen by a training on them.

    Raises:
        UserError: a shard is damaged. The message names it.
        ValueError: the shards do not hold images of digits.
    """
    return frozenset(words_in(folder, manifest))


def _write(folder: Path, row_ids: NDArray[np.int64], source: str) -> Manifest:
    rows = digits()
    images, labels = rows.mean[row_ids], rows.labels[row_ids]
    words = describe(torch.from_numpy(images), torch.from_numpy(labels))
    taken = Rows(
        row_ids=rows.row_ids[row_ids],
        labels=labels,
        keys=[rows.keys[row] for row in row_ids],
        mean=images,
        captions=[captions_of(each) for each in words],
    )
    description = description_of_digits(source, captions=True)
    return write_shards(taken, description, folder, rows_per_shard=450, rows_per_group=128)


def _restore_validation(folder: Path, manifest: Manifest) -> None:
    """Write the validation rows if they are missing beside the training rows."""
    if manifest.source.location == SOURCE:
        raise UserError(
            f"data.prepare=captions, but {folder} holds the digits without captions\n"
            f"  name a folder that is not there yet, such as data.path={folder}-captions, or write them anew: "
            f"{command('data', 'digits', folder, '--captions')}"
        )
    found = _SOURCE.fullmatch(manifest.source.location)
    place = validation_folder(folder)
    if found is not None and found[1] == "training" and not manifest_path(place).is_file():
        seed = int(found[2])
        _write(place, split_rows(seed).validation, location("validation", seed))
