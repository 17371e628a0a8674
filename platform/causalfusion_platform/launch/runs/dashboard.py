"""MLflow's dashboard of a folder of runs, as a server that ends with this process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from ...config.errors import STOPPED
from ...storage.run_layout import ARTIFACTS_FOLDER
from ...storage.sqlite import sqlite_address

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_END_SECONDS = 10.0
"""Seconds for the server to end by itself. A second signal ends it at once."""
_POLL_SECONDS = 0.1


def server_command(database: Path, port: int) -> list[str]:
    """Return the command of MLflow's server on localhost for a folder of runs."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", sqlite_address(database)]
    return [*command, "--default-artifact-root", (database.parent / ARTIFACTS_FOLDER).as_uri(), "--workers", "1"]


def serve(command: Sequence[str]) -> int:
    """Run a server until it ends, or until a signal asks this process to end. Then end all of its processes.

    Returns:
        The server's exit status, or `STOPPED` after a signal.
    """
    asked: list[int] = []

    def ask(number: int, _: FrameType | None) -> None:
        asked.append(number)

    before = {number: signal.signal(number, ask) for number in SIGNALS}
    # A group of its own: a terminal sends Ctrl-C to its whole group, and the server would be asked twice.
    server = subprocess.Popen(command, start_new_session=True, env={**os.environ, **_QUIET})
    try:
        while server.poll() is None and not asked:
            time.sleep(_POLL_SECONDS)
        status = STOPPED if asked else server.wait()
    finally:
        _end(server, asked)
        for number, handler in before.items():
            signal.signal(number, handler)
    return status


# Without its runners of jobs, which evaluate language models, and without reports to its makers.
_QUIET = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}


def _end(server: subprocess.Popen[bytes], asked: Sequence[int]) -> None:
    """End the server's group of processes, at the latest after `_END_SECONDS`."""
    end, signals = time.monotonic() + _END_SECONDS, len(asked)
    _signal(server.pid, signal.SIGTERM)
    while _signal(server.pid, 0) and time.monotonic() < end and len(asked) == signals:
        server.poll()  # an ended process is in its group until it is waited for
        time.sleep(_POLL_SECONDS)
    _signal(server.pid, signal.SIGKILL)
    server.wait()


def _signal(group: int, number: int) -> bool:
    """Send a signal to a group. Return False if it has no process."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True
