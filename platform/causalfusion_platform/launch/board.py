"""Between the workers and the driver. Light to import: Ray starts several processes that need nothing more."""

from __future__ import annotations

from typing import Any

from ..train.progress import Progress


class Board:
    """The actor between the first worker and the terminal: it holds the newest progress and the final times."""

    def __init__(self) -> None:
        self.progress: Progress | None = None
        self.times: dict[str, float] | None = None

    def show(self, progress: Progress) -> None:
        """Take in new progress."""
        self.progress = progress

    def finish(self, times: dict[str, float]) -> None:
        """Take in what the workers measured."""
        self.times = times

    def read(self) -> tuple[Progress | None, dict[str, float] | None]:
        """Return the newest progress, and the times once training has ended."""
        return self.progress, self.times


def enter_worker(arguments: dict[str, Any]) -> None:
    """Entry point of a Ray Train worker. Its heavy imports happen in the workers, not in Ray's controller.

    Args:
        arguments: `job`, a Job as JSON; `board`, the Board actor.
    """
    from ..assemble import Job
    from .worker import ray_worker

    ray_worker(Job.model_validate_json(arguments["job"]), arguments["board"])
