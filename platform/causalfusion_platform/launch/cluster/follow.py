"""Print the log of a job while it runs, and end with its exit status."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from ...config.errors import JOB_INTERRUPTED, STATUS_NAMES, UserError
from ...ray_private import JOB_CLIENT_LOGGERS
from .head import Head
from .jobs import ENDED, exit_status
from .jobs_api import job_details
from .session import dashboard_address

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

_POLL_S = 1.0
_LOST_AFTER_S = 60.0
_SILENT_S = 20.0
"""Silence of a log after which its head is asked. A host that was switched off never closes its connections."""


def connect(head: Head) -> JobSubmissionClient:
    """Return Ray's client for the jobs of a cluster.

    Raises:
        UserError: the head takes no jobs, or this environment asks for a token that the head does not.
    """
    from ray.exceptions import RayError
    from ray.job_submission import JobSubmissionClient

    for name in JOB_CLIENT_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)  # the user does not need to know their steps
    headers = {"Authorization": f"Bearer {head.token}"} if head.token else None
    try:
        with dashboard_address(head.address):
            return JobSubmissionClient(head.address, headers=headers)
    except RayError as error:  # only for a head that asks for no token: ours is a header of its own
        raise UserError(
            f"RAY_AUTH_MODE is token here, but there is no token; the head at {head.address} asks for none\n"
            "  unset RAY_AUTH_MODE, or set it to disabled"
        ) from error
    except (RuntimeError, OSError) as error:
        raise UserError(f"the Ray head at {head.address} does not take jobs: {error}") from error


def follow_job(head: Head, job: str, hints: str) -> int:
    """Print the job's log to stdout until it has ended. A broken connection is taken up where it broke.

    Args:
        head: the cluster's head.
        job: the job's id.
        hints: commands to type next, in messages.

    Returns:
        The exit status that stands for the job's end, or JOB_INTERRUPTED after Ctrl-C.

    Raises:
        UserError: the head is gone.
    """
    try:
        return _follow(connect(head), head, job, hints)
    except KeyboardInterrupt:
        say(f"\nno longer following; job {job} goes on\n{hints}")
        return JOB_INTERRUPTED


def _follow(client: JobSubmissionClient, head: Head, job: str, hints: str) -> int:
    printed, lost_since = 0, None
    while True:
        try:
            printed, failure = asyncio.run(_print_log(client, head, job, printed))
            details = job_details(head, job)
            state = str(details.get("status"))
            if state in ENDED:
                if failure is None:
                    break
            else:
                lost_since = None  # the head is there; only the log's stream had broken
        except BrokenPipeError:
            raise  # whoever read our output has gone
        except UserError as error:
            failure = error
        if failure is not None:
            lost_since = lost_since or time.monotonic()
            if time.monotonic() - lost_since > _LOST_AFTER_S:
                reason = str(failure).partition("\n")[0]
                raise UserError(f"lost the Ray head while following job {job}: {reason}\n{hints}")
        time.sleep(_POLL_S)
    driver = details.get("driver_exit_code")
    code = exit_status(state, driver)
    if code and driver is None and details.get("message"):
        say(details["message"])  # it never started, so that no log holds the reason
    ended = driver or code
    name = f" ({STATUS_NAMES[code]})" if ended == code else ""
    say(f"job {job} {state.lower()}" + (f" with exit status {ended}{name}" if code else ""))
    return code


async def _print_log(client: JobSubmissionClient, head: Head, job: str, skip: int) -> tuple[int, Exception | None]:
    """Print the log without its first `skip` characters.

    Returns:
        The number of characters printed by now, and what broke the stream before the log's end, if anything.
    """
    from aiohttp import ClientError

    seen = 0
    stream = aiter(client.tail_job_logs(job))
    try:
        while (text := await _next(stream, head, job)) is not None:
            # Every stream begins with the log's first character.
            print(text[max(skip - seen, 0) :], end="", flush=True)
            seen += len(text)
    except BrokenPipeError:
        raise
    except (ClientError, RuntimeError, OSError, UserError) as error:
        return max(seen, skip), error
    return max(seen, skip), None


async def _next(stream: AsyncIterator[str], head: Head, job: str) -> str | None:
    """Wait for the next part of a log, or for its end. While nothing comes, see that the head is there.

    Raises:
        UserError: the head does not answer.
    """
    part = asyncio.ensure_future(anext(stream, None))
    try:
        while not (await asyncio.wait({part}, timeout=_SILENT_S))[0]:
            await asyncio.to_thread(job_details, head, job)
    except UserError:
        part.cancel()
        raise
    return await part


def say(text: str) -> None:
    """Print to stderr. Stdout has the log alone."""
    print(text, file=sys.stderr, flush=True)
