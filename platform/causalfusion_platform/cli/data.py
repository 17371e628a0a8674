"""`causalfusion data`: make latent shards, choose prompts, and measure real images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .data_check import inspect, stats, verify
from .data_encode import encode, list_faults
from .data_prompts import prompts
from .data_reference import reference
from .data_subset import subset
from .data_upload import upload
from .help import WholeHelp

if TYPE_CHECKING:
    from ..data.manifest import Manifest

data_app = typer.Typer(
    cls=WholeHelp,
    help="Make and check latent shards, choose prompts, and measure real images.",
    no_args_is_help=True,
)


@data_app.callback()
def group() -> None:
    """Make and check latent shards, choose prompts, and measure real images."""


@data_app.command("digits")
def digits(
    out: Annotated[Path, typer.Argument(help="Folder to write shards into. Its old shards are replaced.")],
    captions: Annotated[
        bool,
        typer.Option("--captions", help="Five captions a digit. 300 of the digits go to OUT-validation."),
    ] = False,
    split: Annotated[
        bool, typer.Option("--split", help="300 of the digits go to OUT-validation, as with --captions.")
    ] = False,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**32 - 1, help="Decides which digits are for validation (default: 0).")
    ] = None,
) -> None:
    """Write the bundled handwritten digits as latent shards (pixels as latents)."""
    from ..config.commands import command
    from ..config.errors import UserError
    from ..data.captioned_digits import write_captioned_digits
    from ..data.digits import write_digits
    from ..data.shards import check_replaceable, refuse_object_storage
    from ..data.split_digits import validation_folder, write_split_digits

    if seed is not None and not (captions or split):
        raise UserError(
            f"--seed {seed} decides which digits are for validation, and without --split or --captions none are\n"
            f"  add one: {command('data', 'digits', out, '--split', '--seed', seed)}"
        )
    refuse_object_storage(out)
    check_replaceable(out)
    if not captions and not split:
        _print_written(out, write_digits(out))
        return
    train, validation = (write_captioned_digits if captions else write_split_digits)(out, seed=seed or 0)
    _print_written(out, train)
    _print_written(validation_folder(out), validation)
    if captions:
        _print_unseen(out, train)


@data_app.command("mnist")
def mnist(
    out: Annotated[
        Path, typer.Argument(help="Folder of the 4,500 training rows. The other 500 go to OUT-validation.")
    ],
    captions: Annotated[bool, typer.Option("--captions", help="Five captions a digit.")] = False,
) -> None:
    """Write 5,000 handwritten digits of MNIST as latent shards, 16×16 pixels as latents. Nothing is downloaded."""
    from ..data.captioned_digits import write_captioned_mnist
    from ..data.mnist import write_mnist
    from ..data.shards import check_replaceable, refuse_object_storage
    from ..data.split_digits import validation_folder

    refuse_object_storage(out)
    check_replaceable(out)
    train, validation = write_captioned_mnist(out) if captions else write_mnist(out)
    _print_written(out, train)
    _print_written(validation_folder(out), validation)
    if captions:
        _print_unseen(out, train)


def _print_unseen(folder: Path, manifest: Manifest) -> None:
    from ..data.caption_language import CELLS
    from ..data.captioned_digits import cells_in

    unseen = len(CELLS) - len(cells_in(folder, manifest))
    print(
        f"five captions a row; {unseen} of {len(CELLS)} combinations of class, ink, slant and width are in no "
        f"training row"
    )


def _print_written(folder: Path, manifest: Manifest) -> None:
    from ..data.layout import manifest_path
    from ..report.numbers import count

    shards = count(len(manifest.shards), "shard")
    print(
        f"{manifest.rows} latents of {'×'.join(map(str, manifest.shape))} in {shards}, "
        f"{len(manifest.class_names)} classes, split {manifest.split}\n"
        f"{manifest_path(folder)}  digest {manifest.digest[:16]}"
    )


data_app.command("encode")(encode)
data_app.command("faults")(list_faults)
data_app.command("verify")(verify)
data_app.command("inspect")(inspect)
data_app.command("stats")(stats)
data_app.command("prompts")(prompts)
data_app.command("reference")(reference)
data_app.command("subset")(subset)
data_app.command("upload")(upload)
