"""The processes of a Ray whose driver is gone."""

from __future__ import annotations

import time

import psutil

_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""They only report, and may wait a minute or more for a server that is gone."""
_SECONDS = 120
"""More than Ray takes to end, on a loaded machine too."""


def end_ray(family: list[psutil.Process]) -> list[psutil.Process]:
    """Wait until the processes of a Ray are gone, then end its agents; return what else had to be ended."""
    deadline = time.monotonic() + _SECONDS
    agents = [one for one in family if title(one).startswith(_AGENTS)]
    others = [one for one in family if one not in agents]
    while (left := [one for one in others if _lives(one)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    for one in [*agents, *left]:
        if _lives(one):
            one.kill()
    return left


def _lives(process: psutil.Process) -> bool:
    """Not so of a zombie: where the first process of a container reaps none, they stay."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def title(process: psutil.Process) -> str:
    """Return what a process is called, as Ray names its own; empty if it is gone."""
    try:
        return " ".join(process.cmdline()).strip()
    except psutil.Error:
        return ""
