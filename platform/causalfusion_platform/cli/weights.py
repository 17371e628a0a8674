"""`causalfusion weights`: import and export checkpoints of other code, and make averages after training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .help import WholeHelp

if TYPE_CHECKING:
    from ..report.bar import CountDisplay

weights_app = typer.Typer(
    cls=WholeHelp,
    help="Import and export checkpoints of other code, and make averages after training.",
    no_args_is_help=True,
)


@weights_app.command("import")
def import_weights(
    checkpoint: Annotated[Path, typer.Argument(help="File of the paper's authors, DiT, or a VAE of MAR or SD.")],
    out: Annotated[Path, typer.Argument(help="Folder to write safetensors and JSON into.")],
    preset: Annotated[str | None, typer.Option(help="Required preset (default: sizes from the tensors).")] = None,
    heads: Annotated[int | None, typer.Option(help="Attention heads. Those of a DiT cannot be inferred.")] = None,
    patch_size: Annotated[int | None, typer.Option(help="Side of a patch, if shapes do not determine it.")] = None,
    ema: Annotated[bool, typer.Option(help="Take the EMA weights if the file has both.")] = True,
    positions: Annotated[
        str, typer.Option(help="Kind of a CausalFusion's positions: auto, sinusoidal or learnable.")
    ] = "auto",
) -> None:
    """Read a checkpoint of other code, recognised by its keys, and write a folder of weights."""
    from ..checkpoint.convert import import_checkpoint

    with _display("import", f"{checkpoint} → {out}"):
        message = import_checkpoint(
            checkpoint, out, preset=preset, heads=heads, patch_size=patch_size, use_ema=ema, positions=positions
        )
    print(message)


@weights_app.command("export")
def export_weights(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of weights, of a checkpoint, or of a run.")],
    out: Annotated[Path, typer.Argument(help="File to write, such as model.pt.")],
) -> None:
    """Write weights in the format of the paper's authors, or a DiT in that of facebookresearch/DiT."""
    from ..checkpoint.convert import export_checkpoint

    with _display("export", f"{checkpoint} → {out}"):
        message = export_checkpoint(checkpoint, out)
    print(message)


@weights_app.command("posthoc")
def posthoc_weights(
    run: Annotated[
        Path, typer.Argument(help="Folder of a run trained with optim.ema_power, or of its checkpoints.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder to write safetensors and JSON into.")],
    sigma: Annotated[float, typer.Option(help="Relative width of the average: above 0, up to 0.28.")] = 0.1,
) -> None:
    """Make an average of the weights of any width from the averages that a run stored."""
    from ..checkpoint.posthoc import reconstruct

    with _display("combine", f"averages of {run}") as display:
        message = reconstruct(run, sigma, out, display.show)
    print(message)


def _display(doing: str, about: str) -> CountDisplay:
    from rich.console import Console

    from ..report.bar import CountDisplay

    return CountDisplay(Console(stderr=True), doing, "tensors", starting=about)
