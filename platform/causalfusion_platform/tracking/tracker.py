"""Protocol to record metrics and images, and a tracker that drops them. `Outbox` records for MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from PIL import Image

AS_BARS = 0
"""Step of metrics with one value a run. MLflow draws them as bars, run beside run, and other steps as dots."""


class Tracker(Protocol):
    """A run that is being recorded. `step` is images seen, or `AS_BARS`."""

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Record several metrics at once."""

    def image(self, key: str, image: Image.Image, step: int) -> None:
        """Record an image as one step of the image series `key`."""

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Record a file."""

    def tags(self, values: Mapping[str, str]) -> None:
        """Record tags of the run."""


class NoTracker:
    """Record nothing, on ranks other than the first."""

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Drop the metrics."""

    def image(self, key: str, image: Image.Image, step: int) -> None:
        """Drop the image."""

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Drop the file."""

    def tags(self, values: Mapping[str, str]) -> None:
        """Drop the tags."""
