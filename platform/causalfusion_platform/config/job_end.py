"""Last line of a job's log: the exit status of the command, which Ray does not keep for a job that was stopped."""

from __future__ import annotations

import re

from .errors import STATUS_NAMES

JOB_VARIABLE = "CAUSALFUSION_JOB"
"""Id of the Ray job that a command runs in. Its runs record it in MLflow."""
_LINE = re.compile(r"^causalfusion: exit status (\d+)\b", re.MULTILINE)


def end_line(status: int) -> str:
    """Return the line that tells how a command ended."""
    return f"causalfusion: exit status {status} ({STATUS_NAMES[status]})"


def status_in(log: str) -> int | None:
    """Return the exit status that the last such line of a log tells, or None."""
    found = _LINE.findall(log)
    return int(found[-1]) if found else None
