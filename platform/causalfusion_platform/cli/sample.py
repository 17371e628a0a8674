"""`causalfusion sample` and `causalfusion edit`: images from a checkpoint, in this process."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..report.bar import CountDisplay
    from ..sampling.interactive import InteractiveSampler

CheckpointArgument = Annotated[Path, typer.Argument(help="Folder of weights, of a checkpoint, or of a run.")]
LabelsOption = Annotated[
    str | None, typer.Option(help="Classes, such as 3 or 0-9 or cat,dog (default: 0). Not for models of text.")
]
TextOption = Annotated[
    list[str] | None, typer.Option(metavar="PROMPT", help="Prompt of a model of text. Repeat it for more rows.")
]
GridOption = Annotated[Path, typer.Option(help="PNG to write: a row per class or prompt.")]
PerLabelOption = Annotated[int, typer.Option("--per-label", min=1, help="Samples of each class or prompt.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed of the samples.")]
VaeOption = Annotated[Path | None, typer.Option(help="Autoencoder, a folder or file. Leave it out for pixels.")]
SettingsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Settings of sampling, such as num_ar_steps=4 num_inference_steps=50 guidance_scale=2.5 sampler=ddim. "
        "Default: those of the checkpoint's run.",
    ),
]


def sample(
    checkpoint: CheckpointArgument,
    settings: SettingsArgument = None,
    labels: LabelsOption = None,
    text: TextOption = None,
    grid: GridOption = Path("samples.png"),
    per_label: PerLabelOption = 10,
    seed: SeedOption = 0,
    vae: VaeOption = None,
) -> None:
    """Generate samples of classes, or of text, and draw them as a grid."""
    with _display("sample") as display:
        sampler = _open(checkpoint, settings, vae, grid)
        rows = sampler.rows(labels, text or [])
        images = sampler.sample(rows, per_label, seed, display.show)
    sampler.draw(images, rows, grid)
    print(f"{len(images)} samples: {sampler.describe()}\n{grid}")


def edit(
    checkpoint: CheckpointArgument,
    settings: SettingsArgument = None,
    keep: Annotated[
        str, typer.Option(help="What stays: center, outside, top, bottom, or an image file (white stays).")
    ] = "top",
    original: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="Image file to edit, or the class or prompt to generate originals of (default: class 0, or the "
            "first --text).",
        ),
    ] = None,
    labels: LabelsOption = None,
    text: TextOption = None,
    grid: GridOption = Path("edits.png"),
    per_label: PerLabelOption = 10,
    seed: SeedOption = 0,
    vae: VaeOption = None,
) -> None:
    """Keep a part of images and regenerate the rest under new classes or text.

    The grid's first row has the originals.
    """
    with _display("generate originals") as display:
        sampler = _open(checkpoint, settings, vae, grid)
        rows = sampler.rows(labels, text or [])
        source = original or (text[0] if text else "0")
        originals = sampler.originals(source, per_label, seed, display.show)
    with _display("edit") as display:
        edited = sampler.edit(originals, keep, rows, seed, display.show)
    sampler.draw_edits(originals, edited, source, rows, grid)
    print(f"{len(edited)} edits, {keep} kept: {sampler.describe()}\n{grid}")


def _display(doing: str) -> CountDisplay:
    from rich.console import Console

    from ..report.bar import CountDisplay

    return CountDisplay(Console(stderr=True), doing, "steps", starting="weights, autoencoder")


def _open(checkpoint: Path, settings: list[str] | None, vae: Path | None, grid: Path) -> InteractiveSampler:
    """Load the model. The sampling settings of a known run are the defaults."""
    import dataclasses

    from causalfusion import SamplingConfig

    from ..checkpoint.class_names import class_names
    from ..checkpoint.find import find_weights
    from ..config.errors import UserError
    from ..launch.runs.folder import RunFolder
    from ..sampling.interactive import InteractiveSampler, check_picture

    check_picture(grid)
    found = find_weights(checkpoint, download=True)
    run = RunFolder(found.run) if found.run else None
    experiment = autoencoder = None
    try:
        experiment, autoencoder = (run.experiment, run.autoencoder) if run else (None, None)
    except UserError as error:  # the weights say all that is needed but for the settings of sampling
        reason = str(error).partition("\n")[0]
        print(f"the run's settings of sampling are not known, so defaults are taken: {reason}", file=sys.stderr)
    sampler = InteractiveSampler.open(
        found.folder,
        experiment.sampling if experiment else SamplingConfig(),
        settings or [],
        vae,
        experiment.diffusion if experiment else None,
        autoencoder,
    )
    data = experiment.data.path if experiment else None
    if sampler.tokenizer is not None:
        return sampler
    names = class_names(found.folder, sampler.model.config.num_classes, data)
    return dataclasses.replace(sampler, class_names=names)
