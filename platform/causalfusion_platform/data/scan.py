"""Full check of every shard: every byte, number, row id and key."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from .fingerprints import Fingerprints, clashes, fingerprints, same_latents
from .finite import rows_not_finite
from .manifest import Manifest, Shard
from .passes import ShowRows, Tick, latents_of, over_shards
from .shard_file import open_parquet
from .validate import CheckedShards, shard_fault

# In half precision −0 has the sign bit alone.
_MINUS_ZERO = 0x8000


@dataclass(frozen=True)
class Scan:
    """Result of a scan."""

    checked: CheckedShards
    repeated_latents: int = 0
    """Rows with the same latent as an earlier row under another key. Real data sets have some."""
    examples: list[tuple[str, str]] = field(default_factory=list)
    """Keys of a few such pairs."""


def scan_shards(
    folder: Path, *, quick: bool = False, show: ShowRows = lambda *_: None, num_examples: int = 3
) -> Scan:
    """Check every shard of `folder`, also after one was found bad.

    It checks all that `shard_fault` does, and in addition:

    * page checksums, NaN and infinity, negative standard deviations and null captions,
    * the label and the row id of every row,
    * row ids and keys that occur twice. The later of two shards that share one is bad.

    Memory holds one row group per CPU and 24 bytes per row.

    Args:
        quick: check only presence, size, schema, row groups and the range of labels in the file's statistics.
        num_examples: number of pairs of rows with the same latent to name.

    Raises:
        UserError: the folder or its manifest is missing, or the manifest is not one of ours.
    """
    manifest = Manifest.read(folder)

    def look(shard: Shard, tick: Tick) -> str | Fingerprints:
        if quick:
            return shard_fault(folder / shard.file, shard, manifest, hashes=False) or Fingerprints.none()
        return look_at_shard(folder / shard.file, shard, manifest, tick)

    found = dict(zip((shard.file for shard in manifest.shards), over_shards(manifest, look, show), strict=True))
    bad = {file: fault for file, fault in found.items() if isinstance(fault, str)}
    prints = {file: print_ for file, print_ in found.items() if isinstance(print_, Fingerprints)}
    bad |= clashes(folder, prints)
    bad = {shard.file: bad[shard.file] for shard in manifest.shards if shard.file in bad}
    good = {file: print_ for file, print_ in prints.items() if file not in bad}
    repeated, examples = same_latents(folder, good, num_examples)
    return Scan(CheckedShards(folder, manifest, bad), repeated, examples)


def look_at_shard(path: Path, shard: Shard, manifest: Manifest, tick: Tick = lambda _: None) -> str | Fingerprints:
    """Return the fault of a shard by itself, or the fingerprints of its rows."""
    fault = shard_fault(path, shard, manifest)
    if fault:
        return fault
    parts, where = [], "the file"
    try:
        with open_parquet(path) as file:
            for group in range(file.num_row_groups):
                where = f"row group {group}"
                table = file.read_row_group(group, use_threads=False)
                fault = _group_fault(table, manifest)
                if fault:
                    return f"{where}: {fault}"
                parts.append(fingerprints(table))
                tick(table.num_rows)
    except (OSError, pa.ArrowException) as error:
        return f"{where} cannot be read: {error}"
    return Fingerprints.joined(parts)


def _group_fault(table: pa.Table, manifest: Manifest) -> str | None:
    row_ids, labels = table.column("row_id").to_numpy(), table.column("label").to_numpy()
    rows_where = partial(_first_row, row_ids)
    if where := rows_where(np.flatnonzero((row_ids < 0) | (row_ids >= manifest.source.items))):
        return (
            f"the row id of {where} is out of range: allowed is 0…{manifest.source.items - 1}, the source's items"
        )
    if where := rows_where(np.flatnonzero((labels < 0) | (labels >= len(manifest.class_names)))):
        return f"the label of {where} is out of range: allowed is 0…{len(manifest.class_names) - 1}"
    for name in manifest.latent_columns:
        if table.column(name).combine_chunks().storage.flatten().null_count:
            return f"{name} has missing numbers"
        latents = latents_of(table, name)
        if where := rows_where(rows_not_finite(latents)):
            return f"{name} holds NaN or infinity in {where}"
        bits = latents.view(np.uint16).reshape(len(row_ids), -1)
        if name.startswith("std") and (where := rows_where(np.flatnonzero(np.any(bits > _MINUS_ZERO, axis=1)))):
            return f"{name} is negative in {where}"
    if manifest.captions:
        captions = table.column("captions").combine_chunks()
        if captions.flatten().null_count:
            return "captions has a caption that is null"
    return None


def _first_row(row_ids: NDArray[np.int64], rows: NDArray[np.int64]) -> str:
    """Return the name of the first of some rows and the number of others, or an empty text without any."""
    if not len(rows):
        return ""
    more = f" and {len(rows) - 1} more of the row group" if len(rows) > 1 else ""
    return f"row {rows[0]} (row id {row_ids[rows[0]]}){more}"
