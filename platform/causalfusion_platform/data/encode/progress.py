"""Progress of a running encoding, counted across the processes of its stages."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True)
class EncodingProgress:
    """Progress of an encoding."""

    items: int
    """Items that were encoded or left out, by all launches."""
    total: int
    """Items of the source."""
    images_per_second: float
    """Speed of this launch since its first batch. 0: not known yet."""
    faults: dict[str, int]
    """Faults found by this launch: kind → count."""

    @property
    def eta_seconds(self) -> float:
        """Remaining time at the present speed."""
        return (self.total - self.items) / max(self.images_per_second, 1e-9)


class EncodingCounter:
    """Ray actor that adds up the counts of the stages."""

    def __init__(self) -> None:
        self.items = self.images = 0
        self.faults: Counter[str] = Counter()

    def encoded(self, items: int, images: int, faults: list[str]) -> None:
        """Add a batch: its items, the encoded images among them, and the kinds of faults found."""
        self.items += items
        self.images += images
        self.faults.update(faults)

    def read(self) -> tuple[int, int, dict[str, int]]:
        """Return items, images and faults so far."""
        return self.items, self.images, dict(self.faults.most_common())
