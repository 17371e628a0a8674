"""`causalfusion caption`: captions of image files, in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .sample import CheckpointArgument, VaeOption

if TYPE_CHECKING:
    from causalfusion import CaptionConfig


def caption(
    checkpoint: CheckpointArgument,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Image files, or folders of them.")],
    beam: Annotated[
        int | None, typer.Option(min=1, help="Beam search with so many hypotheses (default: greedy decoding).")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Sample among the tokens with this probability together, such as 0.9.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="Temperature of sampling (default: 1 with --top-p).")
    ] = None,
    prompt: Annotated[str, typer.Option(help='Beginning of each caption, such as "a photo of".')] = "",
    max_tokens: Annotated[
        int | None,
        typer.Option(min=2, help="Tokens of a caption, its begin and end included (default: the model's most)."),
    ] = None,
    ar_steps: Annotated[
        int, typer.Option(min=1, help="S: AR steps in which each image is read. 1 for a Transfusion.")
    ] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Seed of sampled captions.")] = 0,
    vae: VaeOption = None,
    results: Annotated[
        Path | None,
        typer.Option(help="Write the captions to this JSON, in COCO's results format. Ids end the file names."),
    ] = None,
    grid: Annotated[Path | None, typer.Option(help="PNG to write: each image beside its caption.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the captions as one JSON line, last.")] = False,
) -> None:
    """Describe images with a model of text."""
    from rich.console import Console

    from ..checkpoint.find import find_weights
    from ..config.errors import UserError
    from ..evaluation.captions_file import write_results
    from ..launch.runs.folder import RunFolder
    from ..report.bar import CountDisplay
    from ..sampling.image_captions import ImageCaptioner, image_files, image_ids
    from ..sampling.interactive import check_picture
    from ..sampling.text_grid import caption_grid

    config = _config(beam, top_p, temperature, max_tokens, ar_steps)
    files = image_files(images)
    ids = image_ids(files) if results is not None else []
    if grid is not None:
        check_picture(grid)
    console = Console(stderr=True)
    with CountDisplay(console, "read images", "images", starting="weights, autoencoder") as display:
        found = find_weights(checkpoint)
        try:
            made = RunFolder(found.run).autoencoder if found.run else None
        except UserError:  # the run's record is damaged, but its weights are enough
            made = None
        captioner = ImageCaptioner.open(found.folder, vae, made)
        captioner.check(config, prompt)
        latents = captioner.encode(files, display.show)
    with CountDisplay(console, "caption", "images", starting="first images") as display:
        described = captioner.describe(latents, config, prompt, seed, display.show)
    if results is not None:
        write_results(results, dict(zip(ids, described.texts, strict=True)))
    if grid is not None:
        shown = captioner.decode(latents)
        grid.parent.mkdir(parents=True, exist_ok=True)
        cell = max(48, min(shown.shape[-1], 256))
        caption_grid(shown, described.texts, cell=cell).save(grid)
    for path, text in zip(files, described.texts, strict=True):
        print(f"{path} → {' '.join(text.split())}")
    for written in (results, grid):
        if written is not None:
            print(written)
    if as_json:
        columns = zip(files, described.texts, described.log_probabilities, strict=True)
        rows = [{"file": str(path), "caption": text, "log_probability": total} for path, text, total in columns]
        print(json.dumps(rows))


def _config(
    beam: int | None, top_p: float | None, temperature: float | None, max_tokens: int | None, ar_steps: int
) -> CaptionConfig:
    """Return the options of decoding.

    Raises:
        UserError: they exclude each other, or one is out of range.
    """
    from causalfusion import CaptionConfig

    from ..config.errors import UserError

    if beam is not None and (top_p is not None or temperature is not None):
        other = "--top-p" if top_p is not None else "--temperature"
        raise UserError(f"--beam searches and {other} samples: they exclude each other\n  leave one of them out")
    if temperature is None:
        temperature = 0.0 if top_p is None else 1.0
    try:
        return CaptionConfig(
            temperature=temperature,
            top_p=1.0 if top_p is None else top_p,
            beam=beam or 1,
            max_tokens=max_tokens,
            num_ar_steps=ar_steps,
        )
    except ValueError as error:
        raise UserError(str(error)) from error
