"""The bundled digits in two parts: 1,497 training rows, and 300 validation rows in a sibling folder."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..config.commands import command
from ..config.errors import UserError
from .digits import NUM_ROWS, SOURCE, description_of_digits, digits
from .layout import manifest_path
from .manifest import Manifest
from .shards import Rows, check_replaceable, is_replaceable, write_shards

VALIDATION_ROWS = 300
"""Rows that no training sees. All others are training rows."""
TRAIN_ROWS = NUM_ROWS - VALIDATION_ROWS

Part = Literal["training", "validation"]
MakeRows = Callable[[Rows], Rows]
"""Adds columns to the rows of a part, such as captions."""

_SUFFIX = "-validation"
_SOURCE = re.compile(rf"{re.escape(SOURCE)}; (training|validation|held-out) rows of split (\d+)")
"""Source of a part. Earlier versions wrote `held-out` for `validation`, and the suffix -heldout."""


class SplitRows(NamedTuple):
    """Row ids of both parts, ascending."""

    train: NDArray[np.int64]
    """(1497,)"""
    validation: NDArray[np.int64]
    """(300,)"""


class SplitDigits(NamedTuple):
    """Manifests of both folders."""

    train: Manifest
    validation: Manifest


class DigitsPart(NamedTuple):
    """Part and seed that the manifest of bundled digits names."""

    part: Part
    seed: int


def split_rows(seed: int) -> SplitRows:
    """Return the split of scikit-learn's `train_test_split(test_size=300, random_state=seed)`.

    Anyone can make the same split without this package.
    """
    from sklearn.model_selection import train_test_split  # takes a second to import

    train, validation = train_test_split(np.arange(NUM_ROWS), test_size=VALIDATION_ROWS, random_state=seed)
    return SplitRows(np.sort(train), np.sort(validation))


def location(part: Part, seed: int) -> str:
    """Return the name of the source of one part, in its manifest."""
    return f"{SOURCE}; {part} rows of split {seed}"


def source_of(manifest: Manifest) -> DigitsPart | None:
    """Return the part of the digits that shards are, or None for all of them and for other data."""
    found = _SOURCE.fullmatch(manifest.source.location)
    return (
        None if found is None else DigitsPart("training" if found[1] == "training" else "validation", int(found[2]))
    )


def validation_folder(folder: Path) -> Path:
    """Return the folder of the validation rows beside `folder`, which holds the training rows."""
    if folder.name in ("", ".."):
        folder = folder.resolve()
    return folder.with_name(f"{folder.name}{_SUFFIX}")


def training_folder(folder: Path) -> Path:
    """Return the folder of the training rows beside `folder`, which holds the validation rows."""
    return folder.with_name(re.sub(r"(?<=.)-(validation|heldout)$", "", folder.name))


def write_split_digits(folder: Path, *, seed: int = 0, columns: MakeRows | None = None) -> SplitDigits:
    """Write both parts as latent shards, in place of those of an earlier call.

    The same seed gives the same bytes.

    Args:
        folder: folder of the training rows. The validation rows go into `validation_folder(folder)`.
        seed: seed of the split.
        columns: adds columns to the rows.

    Raises:
        UserError: the folder of the validation rows holds anything else.
    """
    check_replaceable(validation_folder(folder))
    manifest_path(folder).unlink(missing_ok=True)  # written last: rows of one split never lie beside another's
    validation = _write(folder, DigitsPart("validation", seed), columns)
    return SplitDigits(_write(folder, DigitsPart("training", seed), columns), validation)


def ensure_split_digits(folder: Path, *, columns: MakeRows | None = None) -> Manifest:
    """Return the manifest of `folder`. Write what is missing of both parts first, with seed 0 for a new folder.

    Raises:
        UserError: the folder holds digits of another kind, or shards that were not written by the platform.
    """
    if manifest_path(folder).is_file():
        try:
            manifest = Manifest.read(folder)
        except UserError:
            if not is_replaceable(folder):
                raise
        else:
            _check_kind(folder, manifest, captions=columns is not None)
            source = source_of(manifest)
            missing = not manifest_path(validation_folder(folder)).is_file()
            if source is not None and source.part == "training" and missing:
                _write(folder, DigitsPart("validation", source.seed), columns)
            return manifest
    return write_split_digits(folder, columns=columns).train


def digits_command(folder: Path, manifest: Manifest) -> str:
    """Return the command that writes the bundled digits of a manifest into `folder`, in parts or whole."""
    source = source_of(manifest)
    if source is None:
        return command("data", "digits", folder)
    if source.part == "validation":
        folder = training_folder(folder)
    option = "--captions" if manifest.captions else "--split"
    return command("data", "digits", folder, option, *(["--seed", str(source.seed)] if source.seed else []))


def _check_kind(folder: Path, manifest: Manifest, *, captions: bool) -> None:
    """Check that bundled digits in a folder are the ones that are asked for. Shards of other data may be any.

    Raises:
        UserError: they are others.
    """
    if manifest.source.kind != "bundled" or (source_of(manifest) is not None and manifest.captions == captions):
        return
    option = "captions" if captions else "split"
    held = "with captions" if manifest.captions else "without captions" if captions else "in one part"
    raise UserError(
        f"data.prepare={option}, but {folder} holds the digits {held}\n"
        f"  name a folder that is not there yet, such as data.path={folder}-{option}, or write them anew: "
        f"{command('data', 'digits', folder, f'--{option}')}"
    )


def _write(folder: Path, source: DigitsPart, columns: MakeRows | None) -> Manifest:
    is_training = source.part == "training"
    split = split_rows(source.seed)
    row_ids = split.train if is_training else split.validation
    rows = digits()
    taken = replace(
        rows,
        row_ids=rows.row_ids[row_ids],
        labels=rows.labels[row_ids],
        keys=[rows.keys[row] for row in row_ids],
        mean=rows.mean[row_ids],
    )
    taken = taken if columns is None else columns(taken)
    description = description_of_digits(
        location(*source), captions=taken.captions is not None, split="train" if is_training else "val"
    )
    target = folder if is_training else validation_folder(folder)
    return write_shards(taken, description, target, rows_per_shard=450, rows_per_group=128)
