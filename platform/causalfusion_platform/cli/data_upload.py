"""`causalfusion data upload`: copy shards to object storage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def upload(
    folder: Annotated[Path, typer.Argument(help="Folder of latent shards on disk.")],
    to: Annotated[str, typer.Argument(help="Address of the copy: s3://BUCKET/PREFIX.")],
) -> None:
    """Copy latent shards to object storage. Every byte is checked before. The manifest is copied last.

    AWS's own variables name the store and the credentials, such as AWS_ENDPOINT_URL and AWS_PROFILE.
    """
    from rich.console import Console

    from ..config.commands import command
    from ..config.errors import UserError
    from ..data.upload import upload_shards
    from ..report.bar import CountDisplay
    from ..report.numbers import count
    from ..storage.object_path import ObjectPath, as_path

    address = as_path(to)
    if not isinstance(address, ObjectPath):
        raise UserError(
            f"{to} is a path on disk\n  give an address: {command('data', 'upload', folder, 's3://BUCKET/PREFIX')}"
        )
    with CountDisplay(Console(stderr=True), "upload", "rows") as display:
        manifest = upload_shards(folder, address, display.show)
    shards = count(len(manifest.shards), "shard")
    print(
        f"{address}: {manifest.rows} rows in {shards}, digest {manifest.digest[:16]}\n"
        f"  train on them: {command('train', 'EXPERIMENT', f'data.path={address}')}"
    )
