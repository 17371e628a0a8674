"""`causalfusion ui`: the MLflow dashboard of local runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def ui(
    runs: Annotated[str, typer.Option(help="Folder of runs, with its mlflow.db.")] = "runs",
    port: Annotated[int, typer.Option(help="Port on localhost.")] = 5000,
) -> None:
    """Open the MLflow dashboard on localhost. Ctrl-C ends it."""
    from ..config.errors import UserError
    from ..config.schema import local_copy, local_database
    from ..launch.cluster.session import port_is_free
    from ..launch.runs.dashboard import serve, server_command
    from ..launch.runs.find import folder_of_runs
    from ..storage.sqlite import sqlite_address
    from ..tracking.views import newest_experiment, runs_page

    given = folder_of_runs(runs)
    folder = given if isinstance(given, Path) else local_copy(given)
    database = local_database(folder)
    if not database.is_file():
        raise UserError(
            f"there is no mlflow.db in {folder}: nothing has run there yet\n"
            f"  run something first: causalfusion quickstart; or name the folder: causalfusion ui --runs FOLDER"
        )
    if not port_is_free(port):
        raise UserError(f"port {port} is in use\n  choose another: causalfusion ui --port {port + 1}")
    experiment = newest_experiment(sqlite_address(database))
    page = runs_page(experiment) if experiment else "#/experiments"
    print(f"MLflow dashboard: http://127.0.0.1:{port}/{page}  (Ctrl-C ends it)")
    # A choice in the address holds for one page only.
    print("  on other pages choose Model training at the top left: the browser remembers it", flush=True)
    raise typer.Exit(serve(server_command(database, port)))
