"""`causalfusion generate`: sets of samples for evaluation, on Ray workers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .sample import CheckpointArgument, SettingsArgument

PromptsOption = Annotated[
    Path | None,
    typer.Option(help='Prompts of a model of text: a JSONL with "caption", as data prompts writes it.'),
]
CutPromptsOption = Annotated[
    bool, typer.Option("--cut-prompts", help="Cut longer prompts than the model takes, as training does.")
]

_NUM = 50_000


def generate(
    checkpoint: CheckpointArgument,
    settings: SettingsArgument = None,
    num: Annotated[
        int | None, typer.Option(min=1, help="Number of samples (default: 50,000, or one of each prompt).")
    ] = None,
    ar_steps: Annotated[int | None, typer.Option(min=1, help="S, AR steps (default: those of the run).")] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="T, diffusion steps per AR step (default: those of the run).")
    ] = None,
    cfg: Annotated[
        float | None, typer.Option(min=0, help="Guidance scale. 1: none. Default: that of the run.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the samples (default: the run's).")] = None,
    labels: Annotated[str, typer.Option(help="balanced: classes in turn. random: drawn by the seed.")] = "balanced",
    classes: Annotated[
        str | None, typer.Option(help="Classes, such as 0,2,7 or 0-9, or their names (default: all).")
    ] = None,
    prompts: PromptsOption = None,
    cut_prompts: CutPromptsOption = False,
    uint8: Annotated[
        str, typer.Option(help="Pixels: round (as MAR), truncate (as DiT and the paper's release), adm (as ADM).")
    ] = "round",
    precision: Annotated[str, typer.Option(help="fp32, or bf16, which is faster on GPUs and less exact.")] = "fp32",
    vae: Annotated[str | None, typer.Option(help="Autoencoder, a folder or file. Leave it out for pixels.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder to write (default: one named by the settings, in the run's samples/)."),
    ] = None,
    npz: Annotated[bool, typer.Option(help="Write samples.npz in ADM's layout.")] = True,
    png: Annotated[bool, typer.Option("--png", help="Write folders of 1,000 PNGs.")] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Ray actors (default: one per GPU, or one per CPU without GPUs).")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Samples per forward pass (default: the run's).")
    ] = None,
    local: Annotated[
        bool, typer.Option("--local", help="Run in this process without Ray, for debugging or one GPU.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a summary as one JSON line, last.")] = False,
) -> None:
    """Generate a set of samples for evaluation. The same command continues an interrupted one."""
    from rich.console import Console

    from ..config.errors import UserError
    from ..launch.generating.actors import LocalGenerator, RayGenerators
    from ..launch.generating.generate import run_generate
    from ..launch.generating.request import GenerateRequest
    from ..report.generating import GeneratingDisplay, generated_panel
    from ..report.log import log_to

    changes = list(settings or [])
    for option, key, value in (
        ("--ar-steps", "num_ar_steps", ar_steps),
        ("--steps", "num_inference_steps", steps),
        ("--cfg", "guidance_scale", cfg),
    ):
        if value is None:
            continue
        if any(change.partition("=")[0].removeprefix("sampling.") == key for change in changes):
            raise UserError(f"{option} and {key}=… are the same setting\n  leave one of them out")
        changes.append(f"{key}={value}")
    if local and workers is not None:
        raise UserError(f"--local is one process without workers, but --workers {workers}\n  leave one of them out")
    request = GenerateRequest(
        checkpoint=checkpoint,
        num=_NUM if num is None and prompts is None else num,
        settings=changes,
        seed=seed,
        labels=labels,  # type: ignore[arg-type]  # these are checked there
        classes=classes,
        prompts=prompts,
        cut_prompts=cut_prompts,
        uint8=uint8,  # type: ignore[arg-type]
        precision=precision,  # type: ignore[arg-type]
        batch_size=batch_size,
        vae=vae,
        out=out,
        npz=npz,
        png=png,
    )
    console = Console(highlight=False)
    with log_to(console), RayGenerators(workers) as pool, GeneratingDisplay(console) as display:
        done = run_generate(request, LocalGenerator() if local else pool, show=display.show)
    files = [done.npz if output == "npz" else done.png for output in done.outputs]
    if not done.made:
        console.print("all samples were there; nothing was generated")
    console.print(generated_panel(done.plan, done.digest, files, done.made, done.seconds))
    if as_json:
        summary = {
            "folder": str(done.folder),
            "files": [str(path) for path in files],
            "samples": done.plan.num,
            "made": done.made,
            "seconds": done.seconds,
            "digest": done.digest,
        }
        print(json.dumps(summary))
