"""Handwritten digits with captions, in two parts: the bundled ones, and those of MNIST."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from .caption_language import PropertyWords, captions_of, describe
from .manifest import Manifest
from .mnist import KIND as MNIST
from .mnist import MnistParts, ensure_mnist, write_mnist
from .passes import latents_of, read_groups
from .shards import Rows
from .split_digits import SplitDigits, ensure_split_digits, source_of, write_split_digits


def write_captioned_digits(folder: Path, *, seed: int = 0) -> SplitDigits:
    """Write both parts as latent shards with five captions a row, as `write_split_digits` does without."""
    return write_split_digits(folder, seed=seed, columns=_with_captions)


def write_captioned_mnist(folder: Path) -> MnistParts:
    """Write both parts of MNIST as latent shards with five captions a row, as `write_mnist` does without."""
    return write_mnist(folder, columns=_with_captions)


def ensure_captioned_digits(folder: Path) -> Manifest:
    """Return the manifest of `folder`. Write what is missing of both parts first, with seed 0 for a new folder.

    Raises:
        UserError: the folder holds the digits without captions, or shards that were not written by the platform.
    """
    return ensure_split_digits(folder, columns=_with_captions)


def ensure_captioned_mnist(folder: Path) -> Manifest:
    """Return the manifest of `folder`. Write both parts of MNIST first if one is missing or of an older version.

    Raises:
        UserError: the folder holds the digits of MNIST without captions, or other files than shards.
    """
    return ensure_mnist(folder, columns=_with_captions)


def is_captioned_digits(manifest: Manifest) -> bool:
    """Return whether shards are a part of the bundled digits, or of those of MNIST, with captions."""
    return manifest.captions and (source_of(manifest) is not None or manifest.source.kind == MNIST)


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


def _with_captions(rows: Rows) -> Rows:
    words = describe(torch.from_numpy(rows.mean), torch.from_numpy(rows.labels))
    return replace(rows, captions=[captions_of(each) for each in words])
