"""`causalfusion data prompts`: choose captions of COCO as prompts of zero-shot FID."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def prompts(
    captions: Annotated[Path, typer.Argument(help="captions_val2014.json of COCO.")],
    out: Annotated[Path, typer.Argument(help="File of prompts to write, such as fid30k.jsonl.")],
    num: Annotated[int, typer.Option(min=1, help="Number of prompts. FID-30k has 30000.")] = 30_000,
    seed: Annotated[int, typer.Option(min=0, help="Decides which captions are chosen.")] = 0,
) -> None:
    """Choose captions by a seed as prompts of zero-shot COCO FID-30k. Their ids and the protocol are recorded."""
    from rich.console import Console

    from ..evaluation.zero_shot_fid import record_path, write_prompts
    from ..report.bar import CountDisplay

    with CountDisplay(Console(stderr=True), "prompts", starting="captions"):
        record = write_prompts(captions, out, num, seed)
    print(
        f"{record.prompts:,} of {record.annotations:,} captions, seed {record.seed}: {out}\n"
        f"{record.protocol}, reference: all {record.reference_images:,} images, {record.reference_crop}: "
        f"{record_path(out)}"
    )
