"""Live counts of a running pipeline, from wherever its stages run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True)
class Encoding:
    """How far an encoding is."""

    items: int
    """Items that have been through the autoencoder, or been left out before it, by all launches."""
    total: int
    """Items of the source."""
    images_per_second: float
    """By this launch, since its first batch; 0: too early to say."""
    faults: dict[str, int]
    """Faults found by this launch: kind → how many."""

    @property
    def eta_seconds(self) -> float:
        """Time left at the present speed."""
        return (self.total - self.items) / max(self.images_per_second, 1e-9)


class Tally:
    """The actor that the stages report to."""

    def __init__(self) -> None:
        self.items = self.images = 0
        self.faults: Counter[str] = Counter()

    def encoded(self, items: int, images: int, faults: list[str]) -> None:
        """Count a batch: its items, those that were encoded, and the kinds of faults found."""
        self.items += items
        self.images += images
        self.faults.update(faults)

    def read(self) -> tuple[int, int, dict[str, int]]:
        """Return items, images and faults so far."""
        return self.items, self.images, dict(self.faults.most_common())
