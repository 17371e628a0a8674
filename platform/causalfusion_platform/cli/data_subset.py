"""`causalfusion data subset`: a few rows of each class of shards, as shards of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..storage.object_path import as_path


def subset(
    shards: Annotated[
        Path,
        typer.Argument(
            help="Folder of shards, such as shards/digits-split, or s3://BUCKET/PREFIX.",
            parser=as_path,
            metavar="SHARDS",
        ),
    ],
    out: Annotated[Path, typer.Argument(help="Folder to write shards into. Its old shards are replaced.")],
    per_class: Annotated[int, typer.Option(min=1, help="Rows of each class.")],
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Decides which rows.")] = 0,
) -> None:
    """Write a few rows of each class as shards of their own, such as 10 labels a class."""
    from ..data.shards import refuse_object_storage
    from ..data.subset import write_subset

    refuse_object_storage(out)
    manifest = write_subset(shards, out, per_class=per_class, seed=seed)
    print(f"{out}: {manifest.rows:,} of {shards}, {per_class:,} of each class, seed {seed}")
