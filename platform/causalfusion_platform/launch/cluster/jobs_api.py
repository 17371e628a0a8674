"""Jobs of a Ray head over its REST interface, without importing Ray."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from ...config.errors import UserError
from .head import Head, as_object, ask

_SECONDS = 30.0
"""Longest wait for an answer. A busy head may need seconds for a list of thousands of jobs."""


def all_jobs(head: Head) -> list[dict[str, Any]]:
    """Return the jobs that were submitted to a cluster, in the form of Ray's `JobDetails`.

    Raises:
        UserError: the head does not answer, or refuses.
    """
    tree = json.loads(_answer(head, "/api/jobs/") or b"[]")
    return [job for job in tree if job.get("submission_id")]  # a driver that was not submitted has none


def job_details(head: Head, job: str) -> dict[str, Any]:
    """Return a job in the form of Ray's `JobDetails`.

    Raises:
        UserError: see `all_jobs`.
    """
    return as_object(_answer(head, f"/api/jobs/{quote(job, safe='')}"))


def job_log(head: Head, job: str) -> str:
    """Return a job's log so far. It is empty for a job that never started.

    Raises:
        UserError: see `all_jobs`.
    """
    return str(as_object(_answer(head, f"/api/jobs/{quote(job, safe='')}/logs")).get("logs", ""))


def request_stop(head: Head, job: str) -> None:
    """Ask Ray to stop a job. It sends SIGTERM to the job's processes, and SIGKILL when its patience has ended.

    Raises:
        UserError: see `all_jobs`.
    """
    _answer(head, f"/api/jobs/{quote(job, safe='')}/stop", method="POST")


def has_package(head: Head, uri: str) -> bool:
    """Say whether the cluster still holds the directory that was sent with a job, and keep it for minutes more.

    Ray removes a directory when no job needs it.

    Args:
        head: the cluster's head.
        uri: such as `gcs://_ray_pkg_….zip`.
    """
    protocol, _, name = uri.partition("://")
    status, _ = ask(head.address, f"/api/packages/{protocol}/{quote(name, safe='')}", head.token, seconds=_SECONDS)
    return status == 200


def _answer(head: Head, path: str, method: str = "GET") -> bytes:
    status, body = ask(head.address, path, head.token, method=method, seconds=_SECONDS)
    if status == 200:
        return body
    lines = body.decode(errors="replace").strip().splitlines()
    raise UserError(
        f"the Ray head at {head.address} answers {method} {path} with HTTP {status}: {lines[-1] if lines else ''}"
    )
