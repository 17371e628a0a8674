"""Between the workers and the driver. Light to import: Ray starts several processes that need nothing more."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from ...train.progress import Progress


@dataclass(frozen=True)
class WorkerPlace:
    """Where a worker runs."""

    rank: int
    node_id: str
    host: str
    pid: int


@dataclass(frozen=True)
class Commands:
    """What a worker is asked to do; the answer to its sign of life."""

    stop: str | None = None
    """Reason to stop with a checkpoint."""
    dump_to: str | None = None
    """Folder for the stacks of all its threads."""
    leave: bool = False
    """End at once."""


@dataclass
class WorkerStatus:
    """What the actor knows of one worker."""

    place: WorkerPlace
    heard: float
    """When its watch last called, by the actor's clock."""
    moved: float
    """When its training loop last got on."""
    mark: tuple[str, int, int]
    """What the loop does, images seen, and a count of its marks."""


@dataclass
class GroupStatus:
    """What the driver reads."""

    progress: Progress | None = None
    notes: list[str] = field(default_factory=list)
    """Lines for the terminal since the last reading."""
    ended: dict[str, Any] | None = None
    """What the first worker said at its end."""
    workers: list[WorkerStatus] = field(default_factory=list)
    now: float = 0.0
    """The actor's clock."""


class ProgressActor:
    """The actor between the workers and the driver of one attempt."""

    def __init__(self) -> None:
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
        """Take in a worker's sign of life; return what it is asked to do."""
        now, known = time.monotonic(), self.workers.get(place.rank)
        moved = known.moved if known and known.mark == mark else now
        self.workers[place.rank] = WorkerStatus(place, heard=now, moved=moved, mark=mark)
        return self.commands

    def finish(self, ended: dict[str, Any]) -> None:
        """Take in how the workers' training ended."""
        self.status.ended = ended

    def command(self, commands: Commands) -> None:
        """Set what the workers are asked to do."""
        self.commands = commands

    def read(self) -> GroupStatus:
        """Return all that is known; notes are handed out once."""
        now = time.monotonic()
        workers = [self.workers[rank] for rank in sorted(self.workers)]
        status = GroupStatus(self.status.progress, self.status.notes, self.status.ended, workers, now)
        self.status.notes = []
        return status
