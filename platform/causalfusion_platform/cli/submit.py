"""`causalfusion submit`: run a command as a job on a Ray cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..launch.cluster.head import CLUSTER_HOME, DEFAULT_ADDRESS


def submit(
    ctx: typer.Context,
    address: Annotated[
        str | None,
        typer.Option(
            help="URL of the Ray dashboard, or name of a cluster in ~/.causalfusion/clusters.yaml. "
            f"Default: RAY_API_SERVER_ADDRESS, then RAY_ADDRESS, then {DEFAULT_ADDRESS}."
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
        str | None, typer.Option(help="The job's id, unique in the cluster. Default: the run's name and letters.")
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=VALUE]",
            help="Variable of the job's environment, from here if without a value. May be repeated. No secrets: "
            "others with the cluster's token see it.",
        ),
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
    from ..launch.cluster.submit import submit_job

    raise typer.Exit(
        submit_job(
            ctx.args,
            address=address,
            working_dir=working_dir,
            home=home,
            job_id=job_id,
            variables=env or [],
            wait=not no_wait,
        )
    )
