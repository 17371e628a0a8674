"""Print the log of a job while it runs, and end with its exit status."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from typing import TYPE_CHECKING

from ...config.errors import JOB_INTERRUPTED, STATUS_NAMES, UserError
from ...ray_private import JOB_CLIENT_LOGGERS
from .head import Head
from .jobs import exit_status
from .session import dashboard_address

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

_POLL_S = 1.0
_LOST_AFTER_S = 60.0


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


def follow_job(client: JobSubmissionClient, job: str, hints: str) -> int:
    """Print the job's log to stdout until it has ended. A broken connection is taken up where it broke.

    Args:
        client: Ray's client.
        job: the job's id.
        hints: commands to type next, in messages.

    Returns:
        The exit status that stands for the job's end, or JOB_INTERRUPTED after Ctrl-C.

    Raises:
        UserError: the head is gone.
    """
    try:
        return _follow(client, job, hints)
    except KeyboardInterrupt:
        say(f"\nno longer following; job {job} goes on\n{hints}")
        return JOB_INTERRUPTED


def _follow(client: JobSubmissionClient, job: str, hints: str) -> int:
    printed, lost_since = 0, None
    while True:
        try:
            printed, failure = asyncio.run(_print_log(client, job, printed))
            details = client.get_job_info(job)
            if details.status.is_terminal():
                if failure is None:
                    break
            else:
                lost_since = None  # the head is there; only the log's stream had broken
        except BrokenPipeError:
            raise  # whoever read our output has gone
        except (RuntimeError, OSError) as error:
            failure = error
        if failure is not None:
            lost_since = lost_since or time.monotonic()
            if time.monotonic() - lost_since > _LOST_AFTER_S:
                raise UserError(f"lost the Ray head while following job {job}: {failure}\n{hints}")
        time.sleep(_POLL_S)
    code = exit_status(str(details.status.value), details.driver_exit_code)
    if code and details.driver_exit_code is None and details.message:
        say(details.message)  # it never started, so that no log holds the reason
    ended = details.driver_exit_code or code
    name = f" ({STATUS_NAMES[code]})" if ended == code else ""
    say(f"job {job} {details.status.value.lower()}" + (f" with exit status {ended}{name}" if code else ""))
    return code


async def _print_log(client: JobSubmissionClient, job: str, skip: int) -> tuple[int, Exception | None]:
    """Print the log without its first `skip` characters.

    Returns:
        The number of characters printed by now, and what broke the stream before the log's end, if anything.
    """
    from aiohttp import ClientError

    seen = 0
    try:
        async for text in client.tail_job_logs(job):
            # Every stream begins with the log's first character.
            print(text[max(skip - seen, 0) :], end="", flush=True)
            seen += len(text)
    except BrokenPipeError:
        raise
    except (ClientError, RuntimeError, OSError) as error:
        return max(seen, skip), error
    return max(seen, skip), None


def say(text: str) -> None:
    """Print to stderr. Stdout has the log alone."""
    print(text, file=sys.stderr, flush=True)
