"""Resume a job that has ended: the same command and environment, as a new job."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...config.errors import WRONG, UserError
from ...config.files import HOME_VARIABLE
from ...config.job_end import JOB_VARIABLE
from .follow import follow_job, say
from .jobs import PREFIX, FoundJob, check_owner, find_job, job_command
from .jobs_api import has_package
from .named import Cluster
from .run_name import check_job_id, new_job_id
from .submit import EXCLUDES, check_working_dir, next_commands, start


def resume_job(
    job_id: str,
    clusters: Sequence[Cluster],
    *,
    new_id: str | None = None,
    working_dir: Path | None = None,
    anyway: bool = False,
    wait: bool = True,
    environ: Mapping[str, str] = os.environ,
) -> int:
    """Submit a job's command again, with its environment and the directory that was sent with it.

    Args:
        job_id: id of a job that has ended.
        clusters: those to look in.
        new_id: id of the new job. None makes one from the run's name.
        working_dir: folder to send in place of the one before. None: that is sent again if Ray has removed it.
        anyway: resume a job with a wrong argument, or of another user, too.
        wait: follow the new job to its end.
        environ: environment with the user's name.

    Returns:
        As `submit_job`. 0 if the job had finished, and nothing is left to do.

    Raises:
        UserError: the job does not exist, runs, had a wrong argument, or is another user's. Also: another job has
            its run, or the directory is neither on the cluster nor here.
    """
    found = find_job(job_id, clusters)
    job = found.job
    if job.status is None:
        raise UserError(
            f"job {job.id!r} is {job.state}: it can be resumed when it has ended\n"
            f"  follow it: {found.command('logs', '--follow')}\n  stop it: {found.command('stop')}"
        )
    if job.status == 0:
        say(f"job {job.id} has finished: nothing is left to resume\n  its results: {found.command('fetch')}")
        return 0
    check_owner(found, anyway, environ)
    if job.status == WRONG and not anyway:
        raise UserError(
            f"job {job.id!r} ended with status {WRONG}: something given is wrong, and it would end so again\n"
            f"  read which: {found.command('logs')}\n  as it is, once more: {found.command('resume', '--anyway')}"
        )
    _refuse_second(found)
    new_id = new_job_id(job.run or "job") if new_id is None else check_job_id(new_id)
    environment = _environment(found, new_id, working_dir)
    metadata = dict(job.metadata) | {f"{PREFIX}resumes": job.id}
    start(found.head, job.entrypoint, environment, metadata, new_id)
    hints = next_commands(found.cluster.name, new_id)
    say(f"job {new_id} resumes {job.id}: {job.command}\n{hints}")
    if not wait:
        print(new_id, flush=True)
        return 0
    return follow_job(found.head, new_id, hints)


def _refuse_second(found: FoundJob) -> None:
    """Check that no other job has the run: two of them would not continue it both."""
    job = found.job
    place = (job.entrypoint, job.variables.get(HOME_VARIABLE))
    for other in found.others:
        if other.status is None and (other.entrypoint, other.variables.get(HOME_VARIABLE)) == place:
            raise UserError(
                f"job {other.id!r} is {other.state} with the same command: it continues the run already\n"
                f"  see all: {job_command(found.cluster.name, 'list')}"
            )


def _environment(found: FoundJob, new_id: str, working_dir: Path | None) -> dict[str, Any]:
    """Return the runtime environment of the new job."""
    environment = copy.deepcopy(dict(found.job.runtime_env))
    if JOB_VARIABLE in found.job.variables:
        environment["env_vars"][JOB_VARIABLE] = new_id
    sent = environment.get("working_dir")
    if working_dir is None and (sent is None or has_package(found.head, sent)):
        return environment
    folder = working_dir or found.job.metadata.get(f"{PREFIX}folder")
    if folder is None or (working_dir is None and not Path(folder).is_dir()):
        raise UserError(
            f"the directory that was sent with job {found.job.id!r} is no longer on the cluster, and not here\n"
            f"  send one: {found.command('resume', '--working-dir', 'FOLDER')}"
        )
    environment |= {"working_dir": str(check_working_dir(Path(folder))), "excludes": list(EXCLUDES)}
    say(f"sending {environment['working_dir']}, as it is now")
    return environment
