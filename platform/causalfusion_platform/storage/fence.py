"""Fence of a run: only its newest launch may publish anything in the run's folder.

A file lock is not enough. A file system may have none. A server of NFS gives the lock of a client that is cut off
to another client. The process that was cut off lives on and does not know.

Each launch writes its own token once, at its beginning, and removes all that older launches have not published yet.
Then it reads the run. An older launch checks the token right before each publishing. So whatever it still publishes
was there before the newer launch read the run.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict

from .atomic import write_atomically
from .json_file import Damaged, read_model
from .run_layout import RunPaths

_LARGEST = 4096
"""Bytes of a token's file above which it is damaged."""


class Superseded(Exception):
    """Another launch has taken the run over. This one may write nothing more of the run."""


class Fence(Protocol):
    """Tells a launch whether it is still the run's newest one."""

    def check(self) -> None:
        """Check, right before something is published, that no other launch has taken the run over.

        Raises:
            Superseded: one has. Nothing may be published any more.
            OSError: it is not known. Nothing may be published now.
        """


class NoFence:
    """Fence of a process that no other launch competes with, such as a test."""

    def check(self) -> None:
        """Allow everything."""


class Fences:
    """Several fences, each of which has to allow a write."""

    def __init__(self, *fences: Fence) -> None:
        self._fences = fences

    def check(self) -> None:
        """Check all of them."""
        for fence in self._fences:
            fence.check()


class LaunchToken(BaseModel):
    """The newest launch of a run."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    launch: int
    """Number of the launch: 1, 2, …"""
    id: str
    """Random text that tells two launches of one number apart: without a lock both may begin at once."""
    host: str
    pid: int
    since: float
    """UNIX time of its beginning, seconds."""

    @classmethod
    def new(cls, launch: int) -> LaunchToken:
        """Return a token of this process."""
        return cls(
            launch=launch, id=secrets.token_hex(8), host=socket.gethostname(), pid=os.getpid(), since=time.time()
        )

    @classmethod
    def read(cls, run_dir: Path) -> LaunchToken | None:
        """Return the token of a run's newest launch, or None before the first one.

        The file is opened anew at each call. NFS promises only then that another host's content is seen.

        Raises:
            OSError: the file cannot be read, or is damaged.
        """
        try:
            return read_model(RunPaths(run_dir).launch_file, cls, _LARGEST)
        except FileNotFoundError:
            return None
        except Damaged as error:
            raise OSError(str(error)) from error

    def write(self, run_dir: Path) -> None:
        """Make this the token of the run's newest launch. A launch does this once, at its beginning."""
        write_atomically(RunPaths(run_dir).launch_file, (self.model_dump_json() + "\n").encode())


class LaunchFence:
    """Fence of one launch, by the token in the run's folder.

    Args:
        run_dir: the run's folder.
        launch_id: `LaunchToken.id` of the launch.
    """

    def __init__(self, run_dir: Path, launch_id: str) -> None:
        self.run_dir, self.launch_id = run_dir, launch_id

    def check(self) -> None:
        """Check that the token in the run's folder is that of the launch."""
        token = LaunchToken.read(self.run_dir)
        if token is None:
            raise OSError(f"{RunPaths(self.run_dir).launch_file} is gone")
        if token.id != self.launch_id:
            since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(token.since))
            raise Superseded(
                f"launch {token.launch} has taken run {self.run_dir.name!r} over: process {token.pid} on "
                f"{token.host}, since {since}"
            )
