"""`causalfusion data verify`, `inspect` and `stats`: check and show latent shards."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from ..storage.object_path import ObjectPath, as_path

FolderArgument = Annotated[
    Path,
    typer.Argument(help="Folder of latent shards, or s3://BUCKET/PREFIX.", parser=as_path, metavar="FOLDER"),
]


def verify(
    folder: FolderArgument,
    quick: Annotated[bool, typer.Option("--quick", help="Read only sizes and headers, in seconds.")] = False,
    quarantine: Annotated[
        bool, typer.Option("--quarantine", help="Move bad shards into FOLDER/_quarantine, and go on.")
    ] = False,
) -> None:
    """Check every byte, number, row id and key of every shard. Status 2: there are bad shards, all of them named.

    With --quarantine the status is 0 if the folder is valid without them.
    """
    from rich.console import Console

    from ..config.commands import command
    from ..config.errors import WRONG, UserError
    from ..data.quarantine import quarantine_shards, restore_advice
    from ..data.scan import scan_shards
    from ..report.bar import CountDisplay
    from ..report.data.dataset import repeats_lines, set_aside_lines, verdict_lines

    is_object = isinstance(folder, ObjectPath)
    if quarantine and is_object:
        raise UserError(
            f"--quarantine moves files, and {folder} is on object storage\n"
            f"  see which shards are bad: {command('data', 'verify', folder)}, and copy sound ones there: "
            f"{command('data', 'upload', 'FOLDER', folder)}"
        )

    with CountDisplay(Console(stderr=True), "verify", "rows") as display:
        scan = scan_shards(folder, quick=quick, show=display.show)
    checked = scan.checked
    print("\n".join([*verdict_lines(checked, quick=quick), *repeats_lines(scan)]), flush=True)
    if not checked.bad:
        return
    if not quarantine:
        aside = command("data", "verify", folder, "--quarantine")
        set_aside = "" if is_object else f"  restore the files, or set them aside: {aside}\n"
        print(f"{set_aside}  {restore_advice(folder, checked.manifest)}")
        raise typer.Exit(WRONG)
    rest = quarantine_shards(folder, checked.manifest, checked.bad)
    print("\n".join(set_aside_lines(checked, rest, restore_advice(folder, rest))))


def inspect(
    folder: FolderArgument,
    out: Annotated[Path, typer.Option(help="PNG of images to write.")] = Path("preview.png"),
    vae: Annotated[
        str | None, typer.Option(help="Autoencoder that encoded the images. Leave it out for pixels.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Images to show, of up to ten classes.")] = 40,
    seed: Annotated[int, typer.Option(min=0, help="Decides which images.")] = 0,
) -> None:
    """Show the summary of a data set, the histogram and mixing of its classes, and some of its images."""
    import torch
    from rich.console import Console

    from ..data.classes import read_classes
    from ..data.scan import scan_shards
    from ..report.bar import CountDisplay
    from ..report.data.dataset import class_lines, summary_lines
    from ..sampling.interactive import check_picture
    from ..sampling.preview import open_decoder, write_preview

    check_picture(out)
    checked = scan_shards(folder, quick=True).checked
    manifest = checked.usable
    decoder = open_decoder(manifest, vae, "cuda" if torch.cuda.is_available() else "cpu")
    print("\n".join([*summary_lines(folder, manifest), *([checked.notice] if checked.bad else [])]))
    with CountDisplay(Console(stderr=True), "read labels", "rows") as display:
        classes = read_classes(folder, manifest, display.show)
    print("\n".join(class_lines(manifest, classes)))
    if decoder is None:
        print(f"\nno images drawn: latents of an {manifest.autoencoder.name} need it to be decoded: --vae PATH")
        return
    shown = write_preview(folder, manifest, classes, decoder, out, num=samples, seed=seed)
    beside = ", each with its mirror image at its right" if manifest.flip else ""
    print(f"\n{shown} images{beside}: {out}")


def stats(
    folder: FolderArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON instead of a table.")] = False,
) -> None:
    """Show mean and standard deviation of the latents per channel, and the scaling factor that follows."""
    from rich.console import Console

    from ..data.stats import latent_stats
    from ..data.validate import open_shards
    from ..report.bar import CountDisplay
    from ..report.data.dataset import stats_lines

    manifest = open_shards(folder, hashes=False).manifest
    with CountDisplay(Console(stderr=True), "stats", "rows") as display:
        found = latent_stats(folder, manifest, display.show)
    if as_json:
        print(json.dumps({**dataclasses.asdict(found), "suggested_scale": found.suggested_scale}))
    else:
        print("\n".join(stats_lines(folder, found)))
