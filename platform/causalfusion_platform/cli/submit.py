"""`causalfusion submit`: run a command as a job on a Ray cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..launch.cluster.head import DEFAULT_ADDRESS
from ..launch.cluster.submit import CLUSTER_HOME, submit_job


def submit(
    ctx: typer.Context,
    address: Annotated[
        str | None,
        typer.Option(
            help="URL of the Ray dashboard. Default: RAY_API_SERVER_ADDRESS, then RAY_ADDRESS, then "
            f"{DEFAULT_ADDRESS}."
        ),
    ] = None,
    working_dir: Annotated[
        Path,
        typer.Option(help="Folder uploaded as the job's current directory. A source checkout runs as is."),
    ] = Path(),
    home: Annotated[
        str | None,
        typer.Option(
            help="The job's CAUSALFUSION_HOME, from which relative paths of runs and shards count. All nodes "
            f"must reach it. Default: this directory for a head on this machine, else {CLUSTER_HOME}."
        ),
    ] = None,
    job_id: Annotated[
        str | None, typer.Option(help="The job's id, unique in the cluster. Default: Ray chooses one.")
    ] = None,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Print the job's id and return without following it.")
    ] = False,
) -> None:
    """Run a causalfusion command as a job on a Ray cluster.

    causalfusion submit -- train quickstart name=first

    Prints the job's log and ends with the job's exit status. The status is
    143 if the job was stopped, and 130 after Ctrl-C, which leaves it running.

    A cluster with token authentication takes the token from RAY_AUTH_TOKEN,
    the file RAY_AUTH_TOKEN_PATH, or ~/.ray/auth_token.
    """
    raise typer.Exit(
        submit_job(ctx.args, address=address, working_dir=working_dir, home=home, job_id=job_id, wait=not no_wait)
    )
