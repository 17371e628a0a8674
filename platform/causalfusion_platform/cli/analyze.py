"""`causalfusion analyze`: quality of a run over the factorization plane, and its loss along the AR axis."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def analyze(
    run: Annotated[Path, typer.Argument(help="Folder of a run, such as runs/quickstart.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for figures and numbers (default: RUN/analysis).")
    ] = None,
    ar_steps: Annotated[str, typer.Option(help="Numbers of AR steps S to sample with.")] = "1,2,4,8,16",
    steps: Annotated[str, typer.Option(help="Numbers of diffusion steps of each AR step.")] = "2,5,10,25,50",
    num: Annotated[int, typer.Option(min=10, help="Samples for each point of the plane.")] = 200,
) -> None:
    """Draw quality over S and diffusion steps, and Figure 4b and c of the paper, for one run."""
    from rich.console import Console

    from ..launch.evaluating.analyze import analyze_run, read_numbers
    from ..report.bar import CountDisplay
    from ..report.log import log_to

    console = Console(highlight=False)
    with log_to(console), CountDisplay(console, "analyze", "parts", starting="images, classifier") as display:
        folder = analyze_run(
            run,
            out or run / "analysis",
            ar_steps=read_numbers(ar_steps),
            diffusion_steps=read_numbers(steps),
            num=num,
            show=display.show,
        )
    print(folder)
