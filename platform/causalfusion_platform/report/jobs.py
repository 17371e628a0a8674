"""Jobs of Ray clusters as a table in 80 columns, and as JSON."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.cells import cell_len, set_cell_size

from ..config.errors import STATUS_NAMES
from .numbers import clock, duration


@dataclass(frozen=True)
class ClusterJob:
    """Job that was submitted to a Ray cluster."""

    id: str
    state: str
    """pending, running, or ended."""
    status: int | None
    """Exit status that stands for its end. None: it has not ended."""
    command: str
    """Command line of `causalfusion`, or the shell command of another program. Without passwords in addresses."""
    user: str | None = None
    """Who submitted it. None: it does not say."""
    run: str | None = None
    version: str | None = None
    """Version of this package that submitted it."""
    started: float | None = None
    ended: float | None = None
    """Times in seconds since 1970."""
    message: str = ""
    """Ray's words about its end."""
    entrypoint: str = field(default="", repr=False)
    metadata: Mapping[str, str] = field(default_factory=dict, repr=False)
    runtime_env: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Ray's runtime environment of the job. Its variables are not for display."""

    @property
    def variables(self) -> Mapping[str, str]:
        """Environment variables that it was submitted with."""
        return self.runtime_env.get("env_vars") or {}

    @property
    def shown_state(self) -> str:
        """State for readers, such as `continue later (75)`."""
        return self.state if self.status is None else f"{STATUS_NAMES[self.status]} ({self.status})"

    def seconds(self, now: float) -> float | None:
        """Return how long it has run."""
        return None if self.started is None else max((self.ended or now) - self.started, 0.0)


def newest(jobs: Sequence[ClusterJob], count: int = 20) -> list[ClusterJob]:
    """Return jobs without old ones that have ended. The newest come first already."""
    return [job for place, job in enumerate(jobs) if place < count or job.status is None]


def jobs_lines(jobs: Sequence[ClusterJob], width: int = 80, now: float | None = None) -> list[str]:
    """Return the table of jobs, a line for each, or two where one would be wider than `width`.

    An id is never cut. A command is cut with an ellipsis.
    """
    now = time.time() if now is None else now
    rows = [("job", "state", "user", "started", "took"), *(_cells(job, now) for job in jobs)]
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    runs = max(map(cell_len, ["run", *(job.run or _UNKNOWN for job in jobs)]))
    one_line = sum(widths) + runs + 2 * (len(widths) + 1) + _SHORTEST_COMMAND <= width
    widths[0] = min(widths[0], max(width - sum(widths[1:]) - 2 * (len(widths) - 1), len("job")))
    heading = _joined(rows[0], widths)
    lines = [f"{heading}  {_padded('run', runs)}  command" if one_line else heading]
    for job, row in zip(jobs, rows[1:], strict=True):
        if one_line:
            lines.append(
                _cut(f"{_joined(row, widths)}  {_padded(job.run or _UNKNOWN, runs)}  {job.command}", width)
            )
            continue
        if cell_len(job.id) > widths[0]:
            lines.append(job.id)
            row = ("", *row[1:])
        lines += [_joined(row, widths), _cut(f"  {job.run or _UNKNOWN}: {job.command}", width)]
    return [line.rstrip() for line in lines]


_UNKNOWN = "–"
_SHORTEST_COMMAND = 30
_LONGEST_USER = 10
_DAYS = 100 * 3600.0


def _cells(job: ClusterJob, now: float) -> tuple[str, ...]:
    seconds = job.seconds(now)
    return (
        job.id,
        job.shown_state,
        _cut(job.user or _UNKNOWN, _LONGEST_USER),
        _UNKNOWN if job.started is None else time.strftime("%m-%d %H:%M", time.localtime(job.started)),
        _UNKNOWN if seconds is None else clock(seconds) if seconds < _DAYS else duration(seconds),
    )


def _joined(row: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(_padded(text, width) for text, width in zip(row, widths, strict=True))


def _padded(text: str, width: int) -> str:
    return text + " " * (width - cell_len(text))


def _cut(text: str, width: int) -> str:
    return text if cell_len(text) <= width else f"{set_cell_size(text, width - 1).rstrip()}…"


def job_json(job: ClusterJob, cluster: str, address: str, now: float) -> dict[str, Any]:
    """Return a job as JSON has it. Its variables are left out.

    Args:
        job: the job.
        cluster: name of its cluster.
        address: URL of the cluster's dashboard.
        now: time in seconds since 1970, for jobs that have not ended.
    """
    seconds = job.seconds(now)
    return {
        "cluster": cluster,
        "address": address,
        "job": job.id,
        "state": job.state,
        "status": job.status,
        "status_name": None if job.status is None else STATUS_NAMES[job.status],
        "user": job.user,
        "run": job.run,
        "command": job.command,
        "version": job.version,
        "started": job.started,
        "ended": job.ended,
        "seconds": None if seconds is None else round(seconds, 3),
    }
