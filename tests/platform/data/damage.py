"""Shards whose manifest agrees with them although something in them is wrong."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from causalfusion_platform.data.layout import manifest_path

Change = Callable[[pa.Table], pa.Table]


def rehash(folder: Path, index: int) -> None:
    """Write the size and hash of a shard as it is into the manifest."""
    tree = json.loads(manifest_path(folder).read_text())
    shard = tree["shards"][index]
    content = (folder / shard["file"]).read_bytes()
    shard.update(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    manifest_path(folder).write_text(json.dumps(tree))


def rewrite(folder: Path, index: int, change: Change) -> str:
    """Change the rows of a shard, and return its file's name."""
    shard = json.loads(manifest_path(folder).read_text())["shards"][index]
    path = folder / shard["file"]
    table = change(pq.read_table(path))
    if "captions" in table.schema.names:  # read from Parquet, the lists' items have another name than when written
        position = table.schema.names.index("captions")
        field = pa.field("captions", pa.list_(pa.string()), nullable=False)
        table = table.set_column(position, field, table.column(position).cast(field.type))
    pq.write_table(table, path, row_group_size=max(shard["row_groups"]), write_page_checksum=True)
    rehash(folder, index)
    return str(shard["file"])


def put(name: str, row: int, value: object) -> Change:
    """Return a change of one row of a plain column, or of the third number of one row of a tensor column."""

    def change(table: pa.Table) -> pa.Table:
        position = table.schema.names.index(name)
        column = table.column(name).combine_chunks()
        if isinstance(column, pa.FixedShapeTensorArray):
            numbers = column.to_numpy_ndarray().copy()
            numbers.reshape(len(column), -1)[row, 2] = value
            changed = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(numbers))
        else:
            values = column.to_pylist()
            values[row] = value
            changed = pa.array(values, column.type)
        return table.set_column(position, table.schema.field(position), changed)

    return change
