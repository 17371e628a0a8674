"""Where metrics and images go: a protocol with an outbox for MLflow behind it, and nothing behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from PIL import Image

AS_BARS = 0
"""Step of what a run has one value of: MLflow draws it as bars, run beside run; any later step, as a dot."""


class Tracker(Protocol):
    """A run that is being recorded. `step` is images seen, or `AS_BARS`."""

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Record several metrics at once."""

    def image(self, key: str, image: Image.Image, step: int) -> None:
        """Record an image as one step of the image series `key`."""

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Record a file."""


class NoTracker:
    """Records nothing: for ranks other than the first."""

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Drop the metrics."""

    def image(self, key: str, image: Image.Image, step: int) -> None:
        """Drop the image."""

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Drop the file."""
