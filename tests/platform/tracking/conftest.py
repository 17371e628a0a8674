"""A real MLflow server in a process of its own, which tests share, freeze and kill."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from causalfusion_platform.tracking.mlflow import answers

HUNG_SECONDS = 300
"""Longer than a server takes to start on a busy machine."""


class Server:
    """An MLflow server with a SQLite file behind it, on a port of its own. It does not run at first.

    Args:
        folder: a new folder for its files.
        empty_store: the SQLite file that its own is a copy of.
    """

    def __init__(self, folder: Path, empty_store: Path) -> None:
        self.folder, self.process = folder, None
        folder.mkdir()
        shutil.copy(empty_store, folder / "mlflow.db")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.uri = f"http://127.0.0.1:{self.port}"

    process: subprocess.Popen[bytes] | None

    def up(self) -> None:
        """Start it, if it does not run, and wait until it answers."""
        if self.process is None:
            environment = {key: value for key, value in os.environ.items() if key != "PYTEST_CURRENT_TEST"}
            command = ["server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
            store = ["--backend-store-uri", f"sqlite:///{self.folder / 'mlflow.db'}"]
            artifacts = ["--artifacts-destination", str(self.folder / "artifacts")]
            with (self.folder / "log").open("ab") as log:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "mlflow", *command, *store, *artifacts],
                    env={**environment, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # the server's own children end with it
                )
        self.signal(signal.SIGCONT)
        end = time.monotonic() + HUNG_SECONDS
        while (reason := answers(self.uri)) is not None:
            said = (self.folder / "log").read_text()
            assert self.process.poll() is None, f"the MLflow server has ended:\n{said}"
            assert time.monotonic() < end, f"no answer in {HUNG_SECONDS} s ({reason}):\n{said}"
            time.sleep(0.1)

    def freeze(self) -> None:
        """Stop it without ending it: connections are accepted, nothing is answered."""
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it without any notice."""
        if self.process is not None:
            self.signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def signal(self, number: int) -> None:
        """Send a signal to the server and its children."""
        assert self.process is not None
        os.killpg(self.process.pid, number)

    @property
    def client(self) -> Any:
        """MLflow's own client for it."""
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self.uri)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, empty_mlflow_store: Path) -> Iterator[Server]:
    """Return the one server of all tests. `up()` makes sure that it runs, `kill()` that it does not."""
    server = Server(tmp_path_factory.mktemp("server") / "server", empty_mlflow_store)
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture
def running_server(server: Server) -> Server:
    """Return the server of all tests, running. A test that only asks it something takes this one."""
    server.up()
    return server
