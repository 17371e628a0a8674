"""Small shards with captions, which the tests of their readers share."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from tests.platform.conftest import description_of, small_rows

from causalfusion_platform.data.manifest import Manifest
from causalfusion_platform.data.shards import write_shards


def captions_of(rows: int) -> list[list[str]]:
    """Return one to four captions for each row, all of them different, and some longer than others."""
    return [
        [f"row {row} caption {number} " + "very " * (row % 5) + "small" for number in range(1 + row % 4)]
        for row in range(rows)
    ]


def write_captioned(folder: Path, captions: Sequence[Sequence[str]], *, rows_per_shard: int = 10) -> Manifest:
    """Write 2×2 latents with these captions, in row groups of four rows."""
    rows = dataclasses.replace(small_rows(len(captions)), captions=captions)
    description = description_of(rows).model_copy(update={"captions": True})
    return write_shards(rows, description, folder, rows_per_shard=rows_per_shard, rows_per_group=4)
