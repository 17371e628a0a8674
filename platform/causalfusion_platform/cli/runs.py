"""`causalfusion runs`: what became of runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

runs_app = typer.Typer(help="Look at runs: status, speed, goodput, incidents, checkpoints.", no_args_is_help=True)

RunsOption = Annotated[
    Path | None, typer.Option(help="Folder of runs; default: runs below CAUSALFUSION_HOME or here.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one line of JSON instead.")]


@runs_app.callback()
def group() -> None:
    """Look at runs: status, speed, goodput, incidents, checkpoints."""


@runs_app.command("show")
def show(
    name: Annotated[str, typer.Argument(help="Name of a run, or its folder.")],
    runs: RunsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how far a run is, how fast, what its time went to, and what befell it."""
    from rich.console import Console

    from ..launch.runs import find_run, look_at
    from ..report.run_view import run_json
    from ..report.runs import run_panel

    view = look_at(find_run(name, runs))
    if as_json:
        print(json.dumps(run_json(view)))
    else:
        Console(highlight=False).print(run_panel(view))


@runs_app.command("list")
def list_runs(runs: RunsOption = None, as_json: JsonOption = False) -> None:
    """List all runs, those of sweeps included."""
    from rich.console import Console

    from ..config.compose import home
    from ..launch.runs import look_at, runs_in
    from ..report.run_view import run_json
    from ..report.runs import runs_table

    folder = home() / (runs or "runs")
    views = [(path.relative_to(folder).as_posix(), look_at(path)) for path in runs_in(folder)]
    if as_json:
        print(json.dumps([run_json(view) for _, view in views]))
    elif views:
        Console(highlight=False).print(runs_table(views))
    else:
        print(f"no runs in {folder}: nothing has run there yet\n  run something first: causalfusion quickstart")


@runs_app.command("sync")
def sync(
    name: Annotated[str, typer.Argument(help="Name of a run, or its folder.")],
    runs: RunsOption = None,
) -> None:
    """Deliver to MLflow what a run recorded while MLflow was away. A launch of the run does it too."""
    from ..launch.runs import find_run
    from ..launch.sync import sync_run

    delivered = sync_run(find_run(name, runs), say=print)
    print(f"{delivered} records delivered")
