"""What a running job tells the terminal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """How far training is."""

    images: int
    """Images seen."""
    total: int
    """Images of the whole run."""
    loss: float
    """Weighted loss, averaged over ranks and steps since the last report."""
    images_per_second: float
    """Over all workers, since the last report."""
    mfu: float | None = None
    """Model FLOP/s over the devices' peak, since the last report; None if the peak is unknown."""

    @property
    def eta_seconds(self) -> float:
        """Time left at the present speed."""
        return (self.total - self.images) / max(self.images_per_second, 1e-9)


ProgressSink = Callable[[Progress], None]
