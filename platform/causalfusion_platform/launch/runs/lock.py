"""One launch of a run at a time.

The lock is not the whole truth: see `storage.fence`.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import BaseModel

from ...config.commands import command
from ...config.errors import STOPPED, NotNow
from ...storage.atomic import naming
from ...storage.json_file import read_model

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"
_POLL_SECONDS = 1.0
_ASKED_SECONDS = 0.5
"""Seconds to wait for the lock. A process that asks if a run is under way holds it for less."""


class _Holder(BaseModel):
    """Process that holds a lock."""

    host: str
    pid: int
    since: float


class UnderWay(NotNow):
    """Another process holds a run's lock."""


class StillUnderWay(UnderWay):
    """Another process holds a run's lock after a wait. The same command may be given again."""

    status = STOPPED


class Turn:
    """Wait of a launch for another one of the same run, in several steps with one limit.

    Args:
        refuse: raises UnderWay while another launch is under way.
        seconds: longest wait. 0: none.
    """

    def __init__(self, refuse: Callable[[], None], seconds: float) -> None:
        self._refuse, self.seconds = refuse, seconds
        self._until = time.monotonic() + seconds
        self._told = ""

    def wait(self) -> None:
        """Wait until no other launch is under way. Signals end the wait as they end the command.

        Raises:
            UnderWay: one is, and `seconds` is 0.
            StillUnderWay: one is after the wait.
        """
        while True:
            try:
                return self._refuse()
            except UnderWay as error:
                self.hold_back(error)

    def hold_back(self, error: UnderWay) -> None:
        """Say for whom the launch waits, and wait a moment.

        Raises:
            UnderWay, StillUnderWay: see `wait`.
        """
        who, _, advice = str(error).partition("\n")
        left = self._until - time.monotonic()
        if not self.seconds:
            raise error
        if left <= 0:
            raise StillUnderWay(
                f"{who}, still after a wait of {self.seconds:g} s\n"
                f"  give the same command again when it has ended, or wait longer: supervision.lock_seconds=…\n"
                f"{advice}"
            ) from error
        if who != self._told:
            self._told = who
            logger.warning(f"{who}; waiting up to {left:.0f} s for its end (supervision.lock_seconds)")
        time.sleep(min(_POLL_SECONDS, left))


@contextlib.contextmanager
def only_launch(run_dir: Path, wait_seconds: float | None = None) -> Iterator[None]:
    """Hold the run's lock, which the system releases when this process ends, however it ends.

    Args:
        run_dir: the run's folder.
        wait_seconds: longest wait for another process that holds it. Default: for one that only asks.

    Raises:
        UnderWay: another process holds it. The message says which.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    wait = _ASKED_SECONDS if wait_seconds is None else wait_seconds
    with contextlib.ExitStack() as stack:
        try:
            with naming(run_dir / LOCK_FILE):
                stack.enter_context(FileLock(run_dir / LOCK_FILE, timeout=wait, on_acquired=_sign))
        except Timeout:
            raise _refusal(run_dir) from None
        yield


def _sign(file: int) -> None:
    """Write into a lock's file who holds it."""
    holder = _Holder(host=socket.gethostname(), pid=os.getpid(), since=time.time())
    os.ftruncate(file, 0)
    os.pwrite(file, holder.model_dump_json().encode(), 0)


def is_under_way(run_dir: Path) -> bool:
    """Say whether a process holds the run's lock."""
    path = run_dir / LOCK_FILE
    if not path.is_file():
        return False
    with path.open("rb") as file:
        try:  # filelock knows no shared locks: with exclusive ones, two who ask would take each other for a launch
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def refuse_if_under_way(run_dir: Path) -> None:
    """Check, before anything is started, that no other launch of the run is under way.

    Raises:
        UnderWay: one is.
    """
    if is_under_way(run_dir):
        raise _refusal(run_dir)


def in_turn(run_dir: Path, launch: Callable[[], None], poll_seconds: float = 1.0) -> None:
    """Launch a run, after any other process that holds its lock."""
    while True:
        while is_under_way(run_dir):
            time.sleep(poll_seconds)
        with contextlib.suppress(UnderWay):
            return launch()


def _refusal(run_dir: Path) -> UnderWay:
    return UnderWay(
        f"run {run_dir.name!r} is under way: {_holder(run_dir / LOCK_FILE)}\n"
        f"  follow it: {command('runs', 'show', run_dir.name)}; or start another with name=…"
    )


def _holder(path: Path) -> str:
    try:
        holder = read_model(path, _Holder, largest=4096)
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder.since))
        return f"process {holder.pid} on {holder.host}, since {since}"
    except (OSError, ValueError, OverflowError):
        return "another process"
