"""`causalfusion data`: make latent shards, and choose prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .data_check import inspect, stats, verify
from .data_encode import encode, list_faults
from .data_prompts import prompts
from .help import WholeHelp

data_app = typer.Typer(
    cls=WholeHelp, help="Make and check latent shards, and choose prompts.", no_args_is_help=True
)


@data_app.callback()
def group() -> None:
    """Make and check latent shards, and choose prompts."""


@data_app.command("digits")
def digits(
    out: Annotated[Path, typer.Argument(help="Folder to write shards into. Its old shards are replaced.")],
) -> None:
    """Write the bundled handwritten digits as latent shards (pixels as latents)."""
    from ..config.errors import UserError
    from ..data.digits import write_digits
    from ..data.layout import manifest_path
    from ..data.shards import is_replaceable

    if out.exists() and not (out.is_dir() and is_replaceable(out)):
        raise UserError(
            f"{out} exists and is not a folder of shards\n  name a new or empty folder, such as shards/digits"
        )
    manifest = write_digits(out)
    print(
        f"{manifest.rows} latents of {'×'.join(map(str, manifest.shape))} in {len(manifest.shards)} shards, "
        f"{len(manifest.class_names)} classes\n{manifest_path(out)}  digest {manifest.digest[:16]}"
    )


data_app.command("encode")(encode)
data_app.command("faults")(list_faults)
data_app.command("verify")(verify)
data_app.command("inspect")(inspect)
data_app.command("stats")(stats)
data_app.command("prompts")(prompts)
