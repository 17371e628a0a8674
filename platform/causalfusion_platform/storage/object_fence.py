"""Who holds the lock of a run on object storage, and the fence of processes that do not hold it themselves."""

from __future__ import annotations

import os
import socket
import time
import uuid
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from .fence import Superseded
from .objects import ObjectStore

LOCK_OBJECT = ".lock"
"""Object of a run's lock, below the run's address."""


class Holder(BaseModel):
    """Content of a lock."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    id: str
    """Random text of the launch."""
    launch: int = 0
    """Number of the launch. 0: it has not read the run yet."""
    host: str
    pid: int
    machine: str
    """Boot and process namespace, in which the number of a process means the process."""
    started: float
    """Start of the process, UNIX time."""
    since: float
    beat: int = 0
    """Times that the lock was written."""
    released: bool = False

    @classmethod
    def new(cls) -> Holder:
        """Return a holder for this process."""
        return cls(
            id=uuid.uuid4().hex,
            host=socket.gethostname(),
            pid=os.getpid(),
            machine=_machine(),
            started=psutil.Process().create_time(),
            since=time.time(),
        )

    def is_dead(self) -> bool:
        """Say whether it was a process of this machine that has ended."""
        if not self.machine or self.machine != _machine():
            return False
        try:
            return abs(psutil.Process(self.pid).create_time() - self.started) > 1
        except psutil.NoSuchProcess:
            return True
        except psutil.Error:
            return False

    def __str__(self) -> str:
        """Describe the process."""
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"process {self.pid} on {self.host}, since {since}"


class ObjectFence:
    """Fence of a process that does not hold the lock itself, such as a worker. Each check reads the lock.

    Args:
        store: the objects of the run.
        launch_id: text of the launch that the process belongs to.
    """

    def __init__(self, store: ObjectStore, launch_id: str) -> None:
        self.store, self.launch_id = store, launch_id

    def check(self) -> None:
        """Check that the launch holds the lock.

        Raises:
            Superseded: another launch has taken it over.
            OSError: this is not known, or the launch has ended.
        """
        try:
            holder = Holder.model_validate_json(self.store.read(LOCK_OBJECT))
        except ValidationError as error:
            raise OSError(f"{self.store.url / LOCK_OBJECT} is damaged") from error
        if holder.id != self.launch_id:
            raise Superseded(f"another launch has taken {self.store.url} over: {holder}")
        if holder.released:
            raise OSError(f"the launch of {self.store.url} has ended")


def _machine() -> str:
    """Return the boot and the process namespace of this process, or an empty text where they are not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}:{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return ""
