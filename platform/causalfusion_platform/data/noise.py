"""Rows of noise in the columns of shards, for checks that need a batch but no data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch

from causalfusion import draws

from .read import LATENT, Columns, to_columns
from .shards import shard_schema


def noise_columns(fields: Sequence[str], rows: int, shape: tuple[int, int, int]) -> Columns:
    """Return `row_id` and some fields of rows, as `read_window` does: latents are noise, numbers 0, texts "noise".

    Args:
        fields: columns of shards, and `latent`.
        rows: number of rows.
        shape: channels, height and width of a latent.

    Raises:
        KeyError: shards have no column of that name.
    """
    schema = shard_schema(shape, posterior=True, flip=True, captions=True)
    noise = draws.stream(0, "noise")
    made: Columns = {}
    for name in ("row_id", *fields):
        kind = schema.field("mean" if name == LATENT else name).type
        if isinstance(kind, pa.FixedShapeTensorType):
            made[name] = torch.randn(rows, *shape, generator=noise).half().numpy()
        elif name == "row_id":
            made[name] = np.arange(rows, dtype=np.int64)
        else:
            value = 0 if pa.types.is_integer(kind) else "noise" if pa.types.is_string(kind) else ["noise"]
            made |= to_columns(pa.table({name: pa.array([value] * rows, kind)}))
    return made
