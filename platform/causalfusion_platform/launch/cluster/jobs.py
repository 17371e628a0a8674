"""Jobs of Ray clusters: list them, find one, print its log."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ...config.commands import command
from ...config.errors import GAVE_UP, JOB_STOPPED, STATUSES, UserError
from ...config.owner import user_name
from ...config.secret_names import without_credentials
from ...report.jobs import ClusterJob
from .head import Head
from .jobs_api import all_jobs
from .named import Cluster

PREFIX = "causalfusion."
"""Beginning of our keys in the metadata of a job."""
PROGRAM = ("python", "-m", "causalfusion_platform")
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
"""Ray's states of a job that has ended."""
_NEAR = 5


@dataclass(frozen=True)
class Listing:
    """Jobs of a cluster, or the reason why it does not tell them."""

    cluster: Cluster
    jobs: Sequence[ClusterJob] = ()
    """The newest first."""
    fault: str | None = None


@dataclass(frozen=True)
class FoundJob:
    """Job, and the head of its cluster."""

    job: ClusterJob
    head: Head
    cluster: Cluster
    others: Sequence[ClusterJob]
    """All jobs of the cluster."""

    def command(self, verb: str, *words: object) -> str:
        """Return a command of `jobs` about this job, as it is typed in a shell."""
        return job_command(self.cluster.name, verb, self.job.id, *words)


def job_command(cluster: str, verb: str, *words: object) -> str:
    """Return a command of `jobs` for a cluster, as it is typed in a shell."""
    return command("jobs", verb, *words, "--address", cluster)


def list_jobs(clusters: Sequence[Cluster]) -> list[Listing]:
    """Return the jobs of clusters, which are asked at the same time. One that does not answer has a fault."""
    with ThreadPoolExecutor(max(len(clusters), 1)) as threads:
        return list(threads.map(_list, clusters))


def _list(cluster: Cluster) -> Listing:
    try:
        return Listing(cluster, read_jobs(cluster.head))
    except UserError as error:
        return Listing(cluster, fault=str(error))


def read_jobs(head: Head) -> list[ClusterJob]:
    """Return the jobs that were submitted to a cluster, the newest first.

    Raises:
        UserError: the head does not answer, or refuses.
    """
    return sorted(map(as_job, all_jobs(head)), key=lambda job: (job.started or 0.0, job.id), reverse=True)


def find_job(job_id: str, clusters: Sequence[Cluster]) -> FoundJob:
    """Return the job with this id.

    Args:
        job_id: its id.
        clusters: those to look in.

    Raises:
        UserError: no cluster has it, several have it, or a cluster that may have it does not answer.
    """
    heads, known, faults = [], [], []
    for cluster in clusters:
        try:
            head = cluster.head
            jobs = read_jobs(head)
        except UserError as error:
            faults.append(str(error))
            continue
        known += jobs
        heads += [FoundJob(job, head, cluster, jobs) for job in jobs if job.id == job_id]
    if len(heads) == 1:
        return heads[0]
    if heads:
        places = ", ".join(found.cluster.name for found in heads)
        raise UserError(f"job {job_id!r} is on several clusters: {places}\n  name one: --address NAME")
    if faults and not known:
        raise UserError(faults[0])
    raise UserError(_unknown(job_id, clusters, known, faults))


def _unknown(job_id: str, clusters: Sequence[Cluster], known: Sequence[ClusterJob], faults: Sequence[str]) -> str:
    where = ", ".join(cluster.name for cluster in clusters)
    of_run = [job.id for job in known if job.run == job_id]
    near = of_run or difflib.get_close_matches(job_id, [job.id for job in known], n=3)
    hint = f"; did you mean {', '.join(near[:3])}?" if near else ""
    newest = ", ".join(job.id for job in known[:_NEAR])
    lines = [f"no job {job_id!r} at {where}{hint}"]
    lines += (
        [f"  its newest jobs: {newest}"]
        if newest
        else ["  it has no jobs: a head that is started anew forgets them"]
    )
    lines += [f"  not asked, because it does not answer: {fault.partition(chr(10))[0]}" for fault in faults]
    return "\n".join([*lines, f"  all of them: {command('jobs', 'list', '--all')}"])


def as_job(details: Mapping[str, Any]) -> ClusterJob:
    """Return a job from Ray's `JobDetails`."""
    metadata = details.get("metadata") or {}
    entrypoint = str(details.get("entrypoint") or "")
    status, code = str(details.get("status")), details.get("driver_exit_code")
    ended = status in ENDED
    return ClusterJob(
        id=str(details["submission_id"]),
        state="ended" if ended else status.lower(),
        status=exit_status(status, code) if ended else None,
        command=without_credentials(_own_arguments(entrypoint)),
        user=metadata.get(f"{PREFIX}user"),
        run=metadata.get(f"{PREFIX}run"),
        version=metadata.get(f"{PREFIX}version"),
        started=_seconds(details.get("start_time")),
        ended=_seconds(details.get("end_time")) if ended else None,
        message=str(details.get("message") or ""),
        entrypoint=entrypoint,
        metadata=metadata,
        runtime_env=details.get("runtime_env") or {},
    )


def exit_status(status: str, driver_exit_code: int | None) -> int:
    """Return the exit status for a job that has ended with Ray's `status`."""
    if status == "SUCCEEDED":
        return 0
    if status == "STOPPED":
        return JOB_STOPPED
    code = driver_exit_code or GAVE_UP
    code = code if code > 0 else 128 - code  # -N: ended by signal N
    return code if code in STATUSES else GAVE_UP


def _own_arguments(entrypoint: str) -> str:
    """Return the command line of `causalfusion` in a job's shell command. That of another program stays."""
    beginning = f"{shlex.join(PROGRAM)} "
    for start in (beginning, "causalfusion "):
        if entrypoint.startswith(start):
            return entrypoint.removeprefix(start)
    return entrypoint


def _seconds(milliseconds: int | None) -> float | None:
    return None if not milliseconds else milliseconds / 1000


def check_owner(found: FoundJob, anyway: bool, environ: Mapping[str, str]) -> None:
    """Check that a job is this user's.

    Raises:
        UserError: it is another's, or does not say whose it is, and `anyway` was not given.
    """
    own, owner = user_name(environ), found.job.user
    if anyway or owner == own:
        return
    if owner is None:
        whose = f"job {found.job.id!r} does not say whose it is: another program submitted it"
    else:
        whose = f"job {found.job.id!r} is of user {owner!r}, and you are {own!r}"
    raise UserError(f"{whose}\n  if it may be touched: add --anyway, or set CAUSALFUSION_USER if it is yours")
