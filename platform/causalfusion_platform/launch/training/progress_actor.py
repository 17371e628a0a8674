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
class Orders:
    """What a worker is asked to do; the answer to its sign of life."""

    stop: str | None = None
    """Reason to stop with a checkpoint."""
    dump_to: str | None = None
    """Folder for the stacks of all its threads."""
    leave: bool = False
    """End at once."""


@dataclass
class Pulse:
    """What the board knows of one worker."""

    place: WorkerPlace
    heard: float
    """When its watch last called, by the board's clock."""
    moved: float
    """When its training loop last got on."""
    mark: tuple[str, int, int]
    """What the loop does, images seen, and a count of its marks."""


@dataclass
class View:
    """What the driver reads."""

    progress: Progress | None = None
    notes: list[str] = field(default_factory=list)
    """Lines for the terminal since the last reading."""
    ended: dict[str, Any] | None = None
    """What the first worker said at its end."""
    pulses: list[Pulse] = field(default_factory=list)
    now: float = 0.0
    """The board's clock."""


class Board:
    """The actor between the workers and the driver of one attempt."""

    def __init__(self) -> None:
        self.view = View()
        self.orders = Orders()
        self.pulses: dict[int, Pulse] = {}

    def show(self, progress: Progress) -> None:
        """Take in new progress."""
        self.view.progress = progress

    def note(self, text: str) -> None:
        """Take in a line for the terminal."""
        self.view.notes.append(text)

    def beat(self, place: WorkerPlace, mark: tuple[str, int, int]) -> Orders:
        """Take in a worker's sign of life; return what it is asked to do."""
        now, known = time.monotonic(), self.pulses.get(place.rank)
        moved = known.moved if known and known.mark == mark else now
        self.pulses[place.rank] = Pulse(place, heard=now, moved=moved, mark=mark)
        return self.orders

    def finish(self, ended: dict[str, Any]) -> None:
        """Take in how the workers' training ended."""
        self.view.ended = ended

    def order(self, orders: Orders) -> None:
        """Set what the workers are asked to do."""
        self.orders = orders

    def read(self) -> View:
        """Return all that is known; notes are handed out once."""
        now = time.monotonic()
        pulses = [self.pulses[rank] for rank in sorted(self.pulses)]
        view = View(self.view.progress, self.view.notes, self.view.ended, pulses, now)
        self.view.notes = []
        return view
