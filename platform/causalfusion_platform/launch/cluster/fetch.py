"""Fetch the results of a job from MLflow: summary, configuration, sample grids, reports."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ...config.errors import UserError
from ...config.files import HOME_VARIABLE
from ...config.schema import local_database
from ...storage.sqlite import sqlite_address
from ...tracking.fetch import fetch_job
from .jobs import PREFIX, FoundJob, find_job
from .named import Cluster

_VARIABLE = re.compile(r"\$\{oc\.env:(\w+)(?:,[^}]*)?\}")


def fetch_results(job_id: str, clusters: Sequence[Cluster], to: Path, uri: str | None = None) -> list[Path]:
    """Download the artifacts of a job's runs from MLflow. No disk is shared with the cluster.

    Args:
        job_id: the job's id.
        clusters: those to look in.
        to: folder for the files.
        uri: MLflow's address. None: the one that the job was submitted with.

    Returns:
        The paths of the files.

    Raises:
        UserError: the job does not exist, its MLflow is a file on the cluster, or has no run of the job.
    """
    return fetch_job(uri or tracking_uri(find_job(job_id, clusters)), job_id, to)


def tracking_uri(found: FoundJob) -> str:
    """Return the address of a job's MLflow, as its command line and experiment say it.

    Raises:
        UserError: it is a file on another machine, or has a variable that the job was not submitted with.
    """
    job = found.job
    given = job.metadata.get(f"{PREFIX}tracking")
    if given is None and found.head.on_this_host and HOME_VARIABLE in job.variables:
        return sqlite_address(local_database(Path(job.variables[HOME_VARIABLE]) / "runs"))
    shown = _VARIABLE.sub(lambda name: job.variables.get(name[1], name[0]), given or "")
    if shown.startswith(("http://", "https://")) and "$" not in shown and "***" not in shown:
        return shown
    where = shown or "a file in its folder of runs, on the cluster"
    raise UserError(
        f"the MLflow of job {job.id!r} is {where}, which cannot be asked from here\n"
        f"  name a server that it writes to: {found.command('fetch', '--uri', 'http://HOST:5000')}\n"
        "  for the next job: causalfusion jobs submit -- … tracking.uri=http://HOST:5000"
    )
