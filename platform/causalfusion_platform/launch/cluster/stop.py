"""Stop a job so that its run writes a checkpoint, and wait for its end."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence

from ...config.errors import JOB_INTERRUPTED, STOPPED, MachineError
from ...config.job_end import status_in
from .follow import say
from .job_variables import STOP_VARIABLE
from .jobs import FoundJob, check_owner, find_job
from .jobs_api import job_log, request_stop
from .named import Cluster

_UNKNOWN_S = 600
"""Longest wait for a job that was submitted without STOP_VARIABLE. The head's environment may have it."""
_POLL_S = 1.0
_SAY_S = 15.0
_SPARE_S = 60.0
"""Time beyond the job's own after which Ray should have ended it."""
_LINES = 4


def stop_job(
    job_id: str,
    clusters: Sequence[Cluster],
    *,
    anyway: bool = False,
    wait: bool = True,
    environ: Mapping[str, str] = os.environ,
) -> int:
    """Stop a job, and wait for its end.

    Ray sends SIGTERM, at which a training writes a checkpoint. It sends SIGKILL after the time that the job was
    submitted with.

    Args:
        job_id: the job's id.
        clusters: those to look in.
        anyway: stop a job of another user, too.
        wait: wait for the end.
        environ: environment with the user's name.

    Returns:
        0 if the job has ended, or was asked to without `wait`. JOB_INTERRUPTED if waiting was interrupted here.

    Raises:
        UserError: the job does not exist, or is another user's.
        MachineError: the job did not end.
    """
    found = find_job(job_id, clusters)
    job = found.job
    if job.status is not None:
        say(f"job {job.id} has ended before: {job.shown_state}")
        return 0
    check_owner(found, anyway, environ)
    given = job.variables.get(STOP_VARIABLE, "")
    seconds = int(given) if given.isdecimal() else _UNKNOWN_S
    request_stop(found.head, job.id)
    if given:
        say(f"job {job.id} is asked to stop: it has {seconds} s for its checkpoint")
    else:
        say(
            f"job {job.id} is asked to stop: another program submitted it, without {STOP_VARIABLE}\n"
            "  Ray ends it after 3 s, which may be too short for a checkpoint, unless the head has that variable"
        )
    if not wait:
        return 0
    try:
        return _wait(found, seconds)
    except KeyboardInterrupt:
        say(f"\nno longer waiting; job {job.id} goes on stopping\n  see it: {found.command('logs', '--follow')}")
        return JOB_INTERRUPTED


def _wait(found: FoundJob, seconds: float) -> int:
    begun = said = time.monotonic()
    while True:
        job = find_job(found.job.id, [found.cluster]).job
        now = time.monotonic()
        if job.status is not None:
            _tell(FoundJob(job, found.head, found.cluster, found.others), now - begun)
            return 0
        if now - begun > seconds + _SPARE_S:
            raise MachineError(
                f"job {job.id} has not ended {now - begun:.0f} s after it was asked to\n"
                f"  look at it: {found.command('logs', '--follow')}"
            )
        if now - said > _SAY_S:
            say(f"waiting for its checkpoint: {now - begun:.0f} s of at most {seconds:.0f} s")
            said = now
        time.sleep(_POLL_S)


def _tell(found: FoundJob, seconds: float) -> None:
    """Say how the job ended, in the words of its log."""
    log = job_log(found.head, found.job.id)
    status = status_in(log)
    words = [line for line in log.splitlines() if line.strip()][-_LINES:]
    say("\n".join(f"  | {line}" for line in words))
    after = f"job {found.job.id} ended after {seconds:.0f} s"
    if status == STOPPED:
        say(f"{after}: continue later (75)\n  {found.command('resume')}")
    elif found.job.status == 0:
        say(f"{after}: finished (0), before the request reached it")
    else:
        checkpoint = "" if status is not None else ", and does not tell of a checkpoint of the last step"
        say(
            f"{after}: {found.job.shown_state}{checkpoint}\n  from its checkpoint before: {found.command('resume')}"
        )
