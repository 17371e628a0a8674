"""Processes that this one has started: those of a local Ray that did not come up."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil

_SECONDS = 10.0


def end_processes(folder: Path) -> None:
    """Kill the descendants of this process whose command line names a folder, and wait for their end.

    Ray leaves those that it had started when it gave up. They would go on to use the machine.
    """
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any(str(folder) in part for part in process.cmdline()):
                process.kill()
                found.append(process)
    psutil.wait_procs(found, timeout=_SECONDS)
