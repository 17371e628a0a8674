"""`causalfusion runs`: show, compare, tag and register runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from .help import WholeHelp

runs_app = typer.Typer(
    cls=WholeHelp, help="Show runs: status, speed, goodput, incidents, checkpoints.", no_args_is_help=True
)

RunsOption = Annotated[
    str | None,
    typer.Option(help="Folder of runs, or s3://BUCKET/PREFIX (default: runs below CAUSALFUSION_HOME or here)."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one line of JSON instead.")]


@runs_app.callback()
def group() -> None:
    """Show runs: status, speed, goodput, incidents, checkpoints."""


@runs_app.command("show")
def show(
    name: Annotated[str, typer.Argument(help="Name of a run, or its folder.")],
    runs: RunsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show progress, speed, use of time, and incidents of a run."""
    from rich.console import Console

    from ..launch.runs.find import find_run, look_at
    from ..report.runs.list import run_panel
    from ..report.runs.show import run_json

    view = look_at(find_run(name, runs))
    if as_json:
        print(json.dumps(run_json(view)))
    else:
        Console(highlight=False).print(run_panel(view))


@runs_app.command("list")
def list_runs(
    runs: RunsOption = None,
    user: Annotated[str | None, typer.Option(help="Show the runs of this user alone.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List all runs, those of sweeps included."""
    from rich.console import Console

    from ..launch.runs.find import folder_of_runs, look_at_all
    from ..report.runs.list import runs_table
    from ..report.runs.show import run_json

    folder = folder_of_runs(runs)
    views = [found for found in look_at_all(folder) if user in (None, found[1].user)]
    if as_json:
        print(json.dumps([run_json(view) for _, view in views]))
    elif views:
        console = Console(highlight=False)
        console.print(runs_table(views, console.width), soft_wrap=True)
        for fault in (view.fault for _, view in views if view.fault):
            print(fault, file=sys.stderr)
    elif user is not None:
        print(f"no runs of user {user} in {folder}\n  all of them: causalfusion runs list")
    else:
        print(f"no runs in {folder}: nothing has run there yet\n  run something first: causalfusion quickstart")


@runs_app.command("take-over")
def take_over(
    name: Annotated[str, typer.Argument(help="Name of a run, or its folder.")],
    runs: RunsOption = None,
) -> None:
    """Make a run of another user your own, so that your commands continue it."""
    from ..launch.runs.find import find_run
    from ..launch.runs.owner import take_over as change_owner

    run = find_run(name, runs)
    before, now = change_owner(run)
    was = "" if before in (None, now) else f"; it was of {before}"
    print(f"run {run.name} is of user {now}{was}")


@runs_app.command("sync")
def sync(
    name: Annotated[str, typer.Argument(help="Name of a run, or its folder.")],
    runs: RunsOption = None,
) -> None:
    """Deliver to MLflow the records of a run from a time without MLflow. A launch of the run does it too."""
    from rich.console import Console

    from ..launch.runs.find import find_run
    from ..launch.runs.sync import sync_run
    from ..report.bar import CountDisplay
    from ..report.log import log_to

    console = Console(highlight=False)
    with log_to(console), CountDisplay(console, "deliver", "records", starting="MLflow") as display:
        delivered = sync_run(find_run(name, runs), show=display.show)
    print(f"{delivered} records delivered")


@runs_app.command("compare")
def compare(
    names: Annotated[list[str], typer.Argument(help="Two or more runs: names, or folders.")],
    runs: RunsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the differences between configurations of runs, and their results."""
    from rich.console import Console

    from ..config.errors import UserError
    from ..launch.runs.find import compare_runs, find_run
    from ..report.runs.comparison import comparison_json, comparison_tables

    found_runs = {run.root: run for run in (find_run(name, runs) for name in names)}
    if len(found_runs) < 2:
        raise UserError("comparing needs two runs or more\n  list them: causalfusion runs list")
    found = compare_runs(list(found_runs.values()))
    if as_json:
        print(json.dumps(comparison_json(found)))
        return
    console = Console(highlight=False)
    if not found.differing:
        console.print("their configurations are the same")
    for table in comparison_tables(found):
        console.print(table)
    if found.note:
        console.print(found.note, soft_wrap=True)


@runs_app.command("tag")
def tag(
    name: Annotated[str, typer.Argument(help="Name of a run, or its folder.")],
    tags: Annotated[list[str], typer.Argument(metavar="KEY=VALUE...", help="Tags for the run's page in MLflow.")],
    runs: RunsOption = None,
) -> None:
    """Tag a run in MLflow, to find it again: tags.`KEY` = 'VALUE' in the dashboard's search."""
    from ..launch.runs.find import find_run, tag_run

    folder = find_run(name, runs)
    waiting = tag_run(folder, tags)
    keys = ", ".join(tag.partition("=")[0] for tag in tags)
    print(f"tagged {folder.name}: {keys}" + (f"; MLflow is told later ({waiting})" if waiting else ""))


@runs_app.command("fetch")
def fetch(
    name: Annotated[str, typer.Argument(help="Name of a run in MLflow, or its id.")],
    to: Annotated[Path | None, typer.Option(help="Folder (default: fetched/ and the run's name).")] = None,
    uri: Annotated[
        str | None,
        typer.Option(envvar="MLFLOW_TRACKING_URI", help="MLflow server, or sqlite:///FILE (default: as `ui`)."),
    ] = None,
    runs: RunsOption = None,
) -> None:
    """Download a run's artifacts from MLflow, such as report, table, grids and configuration of a cluster job."""
    from rich.console import Console

    from ..config.schema import local_copy, local_database
    from ..launch.runs.find import folder_of_runs
    from ..report.bar import CountDisplay
    from ..report.terminal import as_path
    from ..storage.sqlite import sqlite_address
    from ..tracking.fetch import fetch_artifacts

    folder, of_runs = to or Path("fetched") / name, folder_of_runs(runs)
    local = of_runs if isinstance(of_runs, Path) else local_copy(of_runs)
    with CountDisplay(Console(stderr=True), "fetch", starting=f"artifacts of {name} from MLflow"):
        files = fetch_artifacts(uri or sqlite_address(local_database(local)), name, folder)
    print(f"{len(files)} files of {name} are in {as_path(folder)}")


@runs_app.command("register")
def register(
    name: Annotated[str, typer.Argument(help="Name of a run, or its folder.")],
    model: Annotated[
        str | None, typer.Option(help="Registered model (default: the name of the run's MLflow experiment).")
    ] = None,
    alias: Annotated[str, typer.Option(help="Alias that the version gets.")] = "best",
    runs: RunsOption = None,
) -> None:
    """Upload a run's newest weights into MLflow's model registry, as safetensors."""
    from rich.console import Console

    from ..launch.runs.find import find_run
    from ..launch.runs.register import register_run
    from ..report.bar import CountDisplay

    folder = find_run(name, runs)
    with CountDisplay(Console(stderr=True), "register", starting=f"weights of {folder.name} into MLflow"):
        version = register_run(folder, model=model, alias=alias)
    print(f"{folder.name} is version {version.number} of model {version.model}, alias {alias}")
