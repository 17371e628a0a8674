"""`causalfusion data reference`: measure a folder of real images, as the reference of FID."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def reference(
    folder: Annotated[str, typer.Argument(help="Folder of images, such as val2014, as a path or a URL.")],
    out: Annotated[Path, typer.Argument(help="File of statistics for --reference, such as val2014.npz.")],
    extractor: Annotated[
        str,
        typer.Option(
            help="inception:PATH: the released Inception weights, for FID. package.module:factory?TEXT: yours."
        ),
    ],
    size: Annotated[int, typer.Option(min=1, help="Side of ADM's centre crop, in pixels.")] = 256,
    images: Annotated[
        int, typer.Option(min=0, help="Images that there must be: those of COCO's val2014. 0: any number.")
    ] = 40_504,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record as one JSON line, last.")] = False,
) -> None:
    """Measure all images of a folder, as the reference of FID-30k. The same command continues."""
    import dataclasses

    import torch
    from rich.console import Console

    from ..evaluation.folder_reference import files_path, record_path, write_folder_reference
    from ..evaluation.open import open_extractor
    from ..report.bar import CountDisplay
    from ..report.log import log_to
    from ..report.numbers import count

    console = Console(stderr=True)
    with log_to(console), CountDisplay(console, "reference", "images", starting="weights, list") as display:
        opened = open_extractor(extractor, "cuda" if torch.cuda.is_available() else "cpu")
        record = write_folder_reference(folder, out, opened, size=size, expected=images or None, show=display.show)
    faults = "".join(f"\n{count(number, 'image')}: {kind}" for kind, number in record.faults.items())
    print(
        f"{record.source}: {out}\nspace {record.space}, weights {record.weights_sha256[:12]}…: {record_path(out)}\n"
        f"files: {files_path(out)}{faults}"
    )
    if as_json:
        print(json.dumps(dataclasses.asdict(record)))
