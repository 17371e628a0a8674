"""The actor between the workers and the driver. Light to import: several Ray processes need only this."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ...train.progress import Progress


@dataclass(frozen=True)
class WorkerPlace:
    """Node and process of a worker."""

    rank: int
    node_id: str
    host: str
    pid: int


@dataclass(frozen=True)
class Commands:
    """Request to a worker, given in answer to its heartbeat."""

    stop: str | None = None
    """Reason to stop with a checkpoint."""
    dump_to: str | None = None
    """Folder below the run's for the stacks of all its threads."""
    leave: bool = False
    """End at once."""


@dataclass
class WorkerStatus:
    """State of one worker, as its heartbeats report it."""

    place: WorkerPlace
    heard: float
    """Time of its last heartbeat, by the actor's clock."""
    moved: float
    """Time at which its training loop last made progress."""
    mark: tuple[str, int, int]
    """Activity of the loop, images seen, and a count of its marks."""


@dataclass
class GroupStatus:
    """State of the whole worker group, for the driver."""

    progress: Progress | None = None
    notes: list[str] = field(default_factory=list)
    """Lines for the terminal since the last reading."""
    ended: dict[str, Any] | None = None
    """Report of the first worker at its end."""
    workers: list[WorkerStatus] = field(default_factory=list)
    now: float = 0.0
    """The actor's clock."""


class ProgressActor:
    """The actor between the workers and the driver of one attempt. It runs on the driver's node.

    Args:
        run_dir: the run's folder there, into which it writes for workers that do not see it.
    """

    def __init__(self, run_dir: str) -> None:
        self.run_dir = Path(run_dir)
        self.status = GroupStatus()
        self.commands = Commands()
        self.workers: dict[int, WorkerStatus] = {}

    def show(self, progress: Progress) -> None:
        """Take in new progress."""
        self.status.progress = progress

    def note(self, text: str) -> None:
        """Take in a line for the terminal."""
        self.status.notes.append(text)

    def heartbeat(self, place: WorkerPlace, mark: tuple[str, int, int]) -> Commands:
        """Take in a worker's heartbeat, and return the request to it."""
        now, known = time.monotonic(), self.workers.get(place.rank)
        moved = known.moved if known and known.mark == mark else now
        self.workers[place.rank] = WorkerStatus(place, heard=now, moved=moved, mark=mark)
        return self.commands

    def finish(self, ended: dict[str, Any]) -> None:
        """Take in the end of the workers' training."""
        self.status.ended = ended

    def command(self, commands: Commands) -> None:
        """Set the request to the workers."""
        self.commands = commands

    def read_file(self, name: str) -> bytes | None:
        """Return the content of a file of the run, or None if it does not exist."""
        try:
            return self._inside(name).read_bytes()
        except FileNotFoundError:
            return None

    def append_lines(self, name: str, lines: bytes) -> None:
        """Append whole lines to a file of the run."""
        from ...tracking.lines import append_content

        append_content(self._inside(name), lines)

    def put_file(self, name: str, content: bytes, first: bool = True, last: bool = True) -> None:
        """Write a file of the run from its pieces in order. It is there whole or not at all."""
        path = self._inside(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        with unfinished.open("wb" if first else "ab") as file:
            file.write(content)
        if last:
            unfinished.replace(path)

    def _inside(self, name: str) -> Path:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"{name!r} is not the name of a file inside the run's folder")
        return self.run_dir / path

    def read(self) -> GroupStatus:
        """Return the state of the group. Notes are handed out once."""
        now = time.monotonic()
        workers = [self.workers[rank] for rank in sorted(self.workers)]
        status = GroupStatus(self.status.progress, self.status.notes, self.status.ended, workers, now)
        self.status.notes = []
        return status
