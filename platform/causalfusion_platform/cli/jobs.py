"""`causalfusion jobs`: submit, list, follow, stop, resume and fetch jobs of Ray clusters."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from .help import WholeHelp
from .submit import submit

_HELP = "Run commands as jobs of Ray clusters: submit, list, logs, stop, resume, fetch."

jobs_app = typer.Typer(cls=WholeHelp, help=_HELP, no_args_is_help=True)

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="Id of the job, as `jobs list` prints it.")]
AddressesOption = Annotated[
    list[str] | None,
    typer.Option(
        help="URL of a Ray dashboard, or name of a cluster in ~/.causalfusion/clusters.yaml. May be repeated. "
        "Default: RAY_API_SERVER_ADDRESS, then RAY_ADDRESS, then all clusters of that file."
    ),
]
NoWaitOption = Annotated[bool, typer.Option("--no-wait", help="Return at once.")]


@jobs_app.callback()
def group() -> None:
    """Run commands as jobs of Ray clusters: submit, list, logs, stop, resume, fetch."""


jobs_app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(submit)


@jobs_app.command("list")
def list_them(
    address: AddressesOption = None,
    everything: Annotated[
        bool, typer.Option("--all", help="List old jobs too, not the newest 20 of each.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON instead.")] = False,
) -> None:
    """List the jobs of one or several clusters: state, user, start, duration, run and command."""
    from rich.console import Console

    from ..config.errors import UserError
    from ..launch.cluster.jobs import list_jobs
    from ..launch.cluster.named import find_clusters
    from ..report.jobs import job_json, jobs_lines, newest

    listings = list_jobs(find_clusters(address or []))
    faults = [listing.fault for listing in listings if listing.fault]
    if len(faults) == len(listings) == 1:
        raise UserError(faults[0])
    if as_json:
        now = time.time()
        told = [
            job_json(job, listing.cluster.name, listing.cluster.address, now)
            for listing in listings
            for job in (listing.jobs if everything else newest(listing.jobs))
        ]
        unreachable = [
            {"cluster": one.cluster.name, "address": one.cluster.address, "error": one.fault.partition("\n")[0]}
            for one in listings
            if one.fault
        ]
        print(json.dumps({"jobs": told, "unreachable": unreachable}))
    else:
        width = Console().width
        for listing in listings:
            if len(listings) > 1:
                print(f"cluster {listing.cluster.name}" + ("" if listing.fault else f": {len(listing.jobs)} jobs"))
            if listing.fault:
                print(f"  does not answer: {listing.fault.partition(chr(10))[0]}")
                continue
            shown = listing.jobs if everything else newest(listing.jobs)
            if shown:
                print("\n".join(jobs_lines(shown, width)))
            elif len(listings) == 1:
                print(
                    f"no jobs at {listing.cluster.name}\n  submit one: causalfusion jobs submit -- train quickstart"
                )
            if left := len(listing.jobs) - len(shown):
                print(f"and {left} older: --all")
    if len(faults) == len(listings):
        print(f"none of {len(faults)} clusters answers", file=sys.stderr)
        raise typer.Exit(2)


@jobs_app.command("logs")
def logs(
    job: JobArgument,
    address: AddressesOption = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on until the job ends, and exit with its status.")
    ] = False,
) -> None:
    """Print the log of a job. Ctrl-C leaves the job running."""
    from ..launch.cluster.jobs import find_job
    from ..launch.cluster.named import find_clusters

    found = find_job(job, find_clusters(address or []))
    if follow:
        from ..launch.cluster.follow import follow_job
        from ..launch.cluster.submit import next_commands

        raise typer.Exit(follow_job(found.head, job, next_commands(found.cluster.name, job)))
    from ..launch.cluster.jobs_api import job_log

    log = job_log(found.head, job)
    print(log, end="")
    if not log and found.job.message:
        print(found.job.message, file=sys.stderr)


@jobs_app.command("stop")
def stop(
    job: JobArgument,
    address: AddressesOption = None,
    anyway: Annotated[bool, typer.Option("--anyway", help="Stop a job of another user, too.")] = False,
    no_wait: NoWaitOption = False,
) -> None:
    """Stop a job: its run writes a checkpoint. Wait for the end, and say which it was."""
    from ..launch.cluster.named import find_clusters
    from ..launch.cluster.stop import stop_job

    raise typer.Exit(stop_job(job, find_clusters(address or []), anyway=anyway, wait=not no_wait))


@jobs_app.command("resume")
def resume(
    job: JobArgument,
    address: AddressesOption = None,
    job_id: Annotated[
        str | None, typer.Option(help="Id of the new job. Default: the run's name and letters.")
    ] = None,
    working_dir: Annotated[
        Path | None,
        typer.Option(help="Folder to send in place of the one that was sent with the job."),
    ] = None,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Also a job of another user, or one with a wrong argument (status 2).")
    ] = False,
    no_wait: NoWaitOption = False,
) -> None:
    """Submit the command of an ended job again, in the same environment, as a new job. Its run continues."""
    from ..launch.cluster.named import find_clusters
    from ..launch.cluster.resume import resume_job

    raise typer.Exit(
        resume_job(
            job,
            find_clusters(address or []),
            new_id=job_id,
            working_dir=working_dir,
            anyway=anyway,
            wait=not no_wait,
        )
    )


@jobs_app.command("fetch")
def fetch(
    job: JobArgument,
    to: Annotated[
        Path | None, typer.Argument(metavar="[OUT]", help="Folder (default: fetched/ and the job's id).")
    ] = None,
    address: AddressesOption = None,
    uri: Annotated[
        str | None,
        typer.Option(envvar="MLFLOW_TRACKING_URI", help="MLflow server (default: the one of the job's command)."),
    ] = None,
) -> None:
    """Download the results of a job from MLflow: summary, configuration, sample grids, reports."""
    from rich.console import Console

    from ..launch.cluster.fetch import fetch_results
    from ..launch.cluster.named import find_clusters
    from ..report.bar import CountDisplay
    from ..report.terminal import as_path

    folder = to or Path("fetched") / job
    clusters = find_clusters(address or [])
    with CountDisplay(Console(stderr=True), "fetch", starting=f"results of job {job} from MLflow"):
        files = fetch_results(job, clusters, folder, uri)
    print(f"{len(files)} files of {job} are in {as_path(folder)}")
