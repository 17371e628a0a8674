"""The first rows of captioned shards in memory, to describe them and to draw their captions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import torch
from torch import Tensor

from ..config.commands import command
from ..config.errors import UserError
from .manifest import Manifest
from .read import to_columns
from .shard_file import read_parquet


@dataclass(frozen=True)
class CaptionedRows:
    """Images and all of their captions."""

    latents: Tensor
    """(B, channels, height, width) float32: posterior means."""
    labels: Tensor
    """(B,) int64"""
    keys: list[str]
    """Name of each image in its source."""
    captions: list[list[str]]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.keys)

    def prompts(self, count: int) -> list[str]:
        """Return `count` captions: row i gives its caption i, counted in turn, so that templates alternate.

        After the last row the next caption of each follows.
        """
        rows = len(self)
        return [
            self.captions[i % rows][(i % rows + i // rows) % len(self.captions[i % rows])] for i in range(count)
        ]


def read_captioned_rows(folder: Path, manifest: Manifest, at_most: int) -> CaptionedRows:
    """Read the first `at_most` rows, or all if there are fewer.

    Raises:
        UserError: the shards have no captions, or one cannot be read.
    """
    if not manifest.captions:
        raise UserError(
            f"the shards in {folder} have no captions\n  encode the images with captions: "
            f"{command('data', 'encode')} --help"
        )
    tables: list[pa.Table] = []
    for shard in manifest.shards:
        if sum(map(len, tables)) >= at_most:
            break
        path = folder / shard.file
        try:
            names = ["label", "key", "mean", "captions"]
            tables.append(read_parquet(path, names))
        except (OSError, pa.ArrowException, KeyError) as error:
            raise UserError(
                f"shard {path} cannot be read: {error}\n  see what is wrong: {command('data', 'verify', folder)}"
            ) from error
    rows = pa.concat_tables(tables).slice(0, at_most)
    columns = to_columns(rows.select(["label", "mean"]))
    return CaptionedRows(
        latents=torch.from_numpy(columns["mean"].copy()).float(),
        labels=torch.from_numpy(columns["label"].copy()),
        keys=rows.column("key").to_pylist(),
        captions=rows.column("captions").to_pylist(),
    )
