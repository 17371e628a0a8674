"""The shard format: Parquet with fp16 latents as native fixed-shape tensors, an integer label and a row id."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..config.errors import UserError
from .manifest import MANIFEST_FILE, Manifest, Shard, sha256_of

# A shard, or an unfinished shard or manifest.
_SHARD_FILES = re.compile(r"shard-\d+-of-\d+\.parquet|\.(shard-\d+-of-\d+\.parquet|manifest\.json)\.\d+")


@dataclass(frozen=True)
class Latents:
    """A data set in memory, ready to be written."""

    source: str
    autoencoder: str
    scale: float
    class_names: list[str]
    latents: NDArray[np.float16]
    """(rows, channels, height, width), already multiplied by `scale`."""
    labels: NDArray[np.int64]
    """(rows,)"""


def shard_schema(shape: tuple[int, int, int]) -> pa.Schema:
    """Return the only schema that readers accept, for latents of (channels, height, width)."""
    return pa.schema(
        [
            pa.field("row_id", pa.int64(), nullable=False),
            pa.field("label", pa.int64(), nullable=False),
            pa.field("latent", pa.fixed_shape_tensor(pa.float16(), shape), nullable=False),
        ]
    )


def is_replaceable(folder: Path) -> bool:
    """Say whether a folder holds nothing but what `write_shards` makes, whole or not."""
    others = {path.name for path in folder.iterdir() if not _SHARD_FILES.fullmatch(path.name)}
    if others != {MANIFEST_FILE} or any(folder.glob("shard-*")):
        return others <= {MANIFEST_FILE}
    try:  # many programs have a manifest.json
        Manifest.read(folder)
    except UserError:
        return False
    return True


def write_shards(data: Latents, folder: Path, *, rows_per_shard: int, rows_per_group: int) -> Manifest:
    """Write a data set as shards; the manifest comes last, so an interrupted call leaves nothing to trust.

    The bytes depend on the data and the library versions only: writing twice gives equal digests.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST_FILE).unlink(missing_ok=True)
    for old in [path for path in folder.iterdir() if _SHARD_FILES.fullmatch(path.name)]:
        old.unlink()
    rows = len(data.labels)
    shape: tuple[int, int, int] = data.latents.shape[1:]
    schema = shard_schema(shape)
    count = -(-rows // rows_per_shard)
    shards = []
    for index in range(count):
        part = slice(index * rows_per_shard, min((index + 1) * rows_per_shard, rows))
        latents = np.ascontiguousarray(data.latents[part])
        columns = [
            pa.array(np.arange(part.start, part.stop), pa.int64()),
            pa.array(data.labels[part], pa.int64()),
            pa.FixedShapeTensorArray.from_numpy_ndarray(latents),
        ]
        path = folder / f"shard-{index:05d}-of-{count:05d}.parquet"
        temporary = folder / f".{path.name}.{os.getpid()}"
        pq.write_table(
            pa.Table.from_arrays(columns, schema=schema),
            temporary,
            row_group_size=rows_per_group,
            compression="zstd",
            write_page_checksum=True,
        )
        temporary.replace(path)
        metadata = pq.ParquetFile(path).metadata
        shards.append(
            Shard(
                file=path.name,
                rows=metadata.num_rows,
                row_groups=[metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)],
                bytes=path.stat().st_size,
                sha256=sha256_of(path),
            )
        )
    manifest = Manifest(
        source=data.source,
        rows=rows,
        shape=shape,
        scale=data.scale,
        autoencoder=data.autoencoder,
        class_names=data.class_names,
        shards=shards,
    )
    manifest.write(folder)
    return manifest
