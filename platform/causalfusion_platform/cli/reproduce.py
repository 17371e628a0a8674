"""`causalfusion reproduce`: a table of the paper, with measured values beside the printed ones."""

from __future__ import annotations

import functools
import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from .config import Overrides
from .train import JsonOption


def reproduce(
    table: Annotated[str, typer.Argument(help="Table or figure, such as table3a or figure4.")],
    overrides: Overrides = None,
    scale: Annotated[
        str | None,
        typer.Option(
            help="mnist or digits: small models on two CPU cores (default: what the table has of them). "
            "paper: the paper's settings, on a cluster."
        ),
    ] = None,
    rows: Annotated[str | None, typer.Option(help="Rows, such as gamma-1.0,gamma-0.9 (default: all).")] = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds, such as 0,1,2 (default: those of the table).")] = None,
    extractor: Annotated[
        str | None, typer.Option(help="Feature extractor, as in `evaluate`. At paper scale inception:PATH.")
    ] = None,
    reference: Annotated[
        list[str] | None,
        typer.Option(metavar="[ROW=]FILE", help="Real images or their statistics, .npz of ADM."),
    ] = None,
    vae: Annotated[
        list[str] | None,
        typer.Option(metavar="[ROW=]PATH", help="Autoencoder that decodes samples. Leave it out for pixels."),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Prompts that rows of text and images draw at paper scale, such as fid30k.jsonl of data prompts."
        ),
    ] = None,
    until_decided: Annotated[
        bool,
        typer.Option("--until-decided", help="Train the table's further seeds too if a claim is undecided before."),
    ] = False,
    results: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Copy the report into FOLDER/TABLE too, and write FOLDER/README.md over all reports there.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the runs and their cost, and stop.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train the rows of a table with each seed, measure them, and report. The same command continues.

    Columns of fine-tunes are measured on fine-tunes of the rows. FINETUNE:key=value changes a recipe of them.

    The report has the paper's printed values, ours with confidence intervals, and a test of the paper's orderings.
    It is written as Markdown, LaTeX, figures, and a page that opens offline, and is also stored in MLflow.
    """
    from rich.console import Console

    from ..config.errors import GAVE_UP, UserError
    from ..config.paper_table import SCALES, load_table
    from ..launch.reproduction.finetunes import plan_finetunes
    from ..launch.reproduction.reproduce import REPORT_FOLDER
    from ..launch.reproduction.reproduce import reproduce as run
    from ..launch.reproduction.results import publish_report
    from ..launch.reproduction.rows import more_seeds, reproduction_of
    from ..launch.sweeping.cost import sweep_cost
    from ..report.log import log_to
    from ..report.paper.json import report_json
    from ..report.paper.terminal import render_terminal
    from ..report.sweeps.live import LiveTable
    from ..report.terminal import as_path, preflight_line

    if scale is None:
        scale = load_table(table).smallest
    if scale not in SCALES:
        raise UserError(f"--scale {scale}: allowed are {', '.join(SCALES)}")
    if seeds is not None and not all(part.isdecimal() for part in seeds.split(",")):
        raise UserError(f"--seeds {seeds!r} are not whole numbers such as 0,1,2")
    plan = functools.partial(
        reproduction_of,
        table,
        scale,
        rows=rows.split(",") if rows else (),
        overrides=overrides or [],
        extractor=extractor,
        references=reference or (),
        vaes=vae or (),
        prompts=prompts,
        # The command for all missing runs, without a choice of rows or seeds.
        command=shlex.join(
            [
                *("causalfusion", "reproduce", table, *(overrides or []), "--scale", scale),
                *(("--extractor", extractor) if extractor else ()),
                *(part for one in reference or () for part in ("--reference", one)),
                *(part for one in vae or () for part in ("--vae", one)),
                *(("--prompts", str(prompts)) if prompts else ()),
                *(("--until-decided",) if until_decided else ()),
            ]
        ),
    )
    reproduction = plan(seeds=[int(part) for part in seeds.split(",")] if seeds else ())
    more = more_seeds(reproduction) if until_decided else ()
    console = Console(highlight=False)
    console.print(preflight_line(), soft_wrap=True)
    console.print(
        f"{reproduction.table.source}: {reproduction.table.title} → {as_path(reproduction.folder)}",
        soft_wrap=True,
        markup=False,
    )
    stage = plan_finetunes(reproduction)
    for line in sweep_cost(reproduction.job):
        console.print(line, soft_wrap=True)
    if stage is not None:
        console.print("Fine-tunes of the rows, when they are trained:")
        for line in sweep_cost(stage.job):
            console.print(line, soft_wrap=True)
    if dry_run:
        return
    # Each value is a sample set of its own: `generate` would print lines for every one.
    with log_to(console, ["launch.generating"]):
        report = run(reproduction, lambda metric: LiveTable(console, metric))
        if more and not report.decided:
            console.print(f"A claim is undecided: seeds {', '.join(map(str, more))} are added.")
            reproduction = plan(seeds=[*reproduction.plan.seeds, *more])
            report = run(reproduction, lambda metric: LiveTable(console, metric))
    console.print(render_terminal(report))
    console.print(as_path(reproduction.folder / REPORT_FOLDER), soft_wrap=True, markup=False)
    if results is not None:
        console.print(as_path(publish_report(reproduction, results)), soft_wrap=True, markup=False)
    if as_json:
        print(json.dumps(report_json(report), ensure_ascii=False))
    if not report.complete and not (rows or seeds):
        raise typer.Exit(GAVE_UP)
