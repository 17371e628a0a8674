"""Check a folder of shards against its manifest before anything trusts it."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from causalfusion import ModelConfig

from ..config.errors import UserError
from .manifest import Manifest, Shard, sha256_of
from .shards import shard_schema


def open_shards(folder: Path) -> Manifest:
    """Return the manifest of `folder` after checking every shard against it.

    Checked: presence, size, SHA-256, schema (nothing but the shard schema, so no pickled extension types),
    rows of every row group, and the range of labels.

    Raises:
        UserError: the first fault found, with the shard's name.
    """
    manifest = Manifest.read(folder)
    for shard in manifest.shards:
        fault = _fault(folder / shard.file, shard, manifest)
        if fault:
            raise UserError(
                f"shard {folder / shard.file} does not match its manifest: {fault}\n"
                f"  restore the file, or make the folder anew (bundled digits: causalfusion data digits {folder})"
            )
    return manifest


def check_model_fits(manifest: Manifest, model: ModelConfig, folder: Path) -> None:
    """Check that a model can train on these latents.

    Raises:
        UserError: shapes or class counts differ.
    """
    expected = (model.in_channels, model.input_size, model.input_size)
    if manifest.shape != expected:
        raise UserError(
            f"the shards in {folder} hold latents of shape {manifest.shape}, but the model takes {expected}\n"
            f"  set model.in_channels={manifest.shape[0]} model.input_size={manifest.shape[1]}, or data.path"
        )
    if len(manifest.class_names) != model.num_classes:
        raise UserError(
            f"the shards in {folder} have {len(manifest.class_names)} classes, but model.num_classes is "
            f"{model.num_classes}\n  set model.num_classes={len(manifest.class_names)}, or data.path"
        )


def _fault(path: Path, shard: Shard, manifest: Manifest) -> str | None:
    if not path.is_file():
        return "the file is missing"
    if path.stat().st_size != shard.bytes:
        return f"it has {path.stat().st_size} bytes, not {shard.bytes}"
    if (found := sha256_of(path)) != shard.sha256:
        return f"its SHA-256 is {found[:12]}…, not {shard.sha256[:12]}…"
    try:
        parquet = pq.ParquetFile(path)
        schema = parquet.schema_arrow
    except (pa.ArrowException, OSError) as error:
        return f"it is not readable Parquet ({error})"
    if not schema.equals(shard_schema(manifest.shape)):
        return f"its schema is {schema.to_string(show_field_metadata=False)!r}, not the shard schema"
    metadata = parquet.metadata
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    if [group.num_rows for group in groups] != shard.row_groups:
        return f"its row groups have {[group.num_rows for group in groups]} rows, not {shard.row_groups}"
    column = schema.names.index("label")
    classes = len(manifest.class_names)
    for group in groups:
        statistics = group.column(column).statistics
        if statistics is None or not 0 <= statistics.min <= statistics.max < classes:
            given = "unknown" if statistics is None else f"{statistics.min}…{statistics.max}"
            return f"a label is out of range: labels are {given}, allowed is 0…{classes - 1}"
    return None
