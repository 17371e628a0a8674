"""Where metrics and images go: a protocol with MLflow or a spool behind it, and nothing behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from PIL import Image


class Tracker(Protocol):
    """A run that is being recorded. `step` is images seen throughout."""

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Record several metrics at once."""

    def image(self, key: str, image: Image.Image, step: int) -> None:
        """Record an image as one step of the image series `key`."""

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Record a file."""


class RunTracker(Tracker, Protocol):
    """A tracker that can also end the run."""

    def finish(self, status: str = "FINISHED") -> None:
        """End the run with an MLflow status: FINISHED, FAILED or KILLED."""

    def reopen(self) -> None:
        """Mark the run as running again."""


class NoTracker:
    """Records nothing: for ranks other than the first."""

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Drop the metrics."""

    def image(self, key: str, image: Image.Image, step: int) -> None:
        """Drop the image."""

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Drop the file."""
