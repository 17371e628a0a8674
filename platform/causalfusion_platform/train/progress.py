"""Progress of a running job, for the terminal and the heartbeat."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from ..tracking.journal import StepReport


@dataclass(frozen=True)
class Progress:
    """Position and speed of training."""

    images: int
    """Images seen."""
    total: int
    """Images of the whole run."""
    loss: float
    """Weighted loss, averaged over ranks and steps since the last report."""
    images_per_second: float
    """Over all workers, since the last report."""
    mfu: float | None = None
    """Model FLOP/s over the devices' peak, since the last report. None as in `Interval`."""

    @classmethod
    def of(cls, report: StepReport, total: int) -> Self:
        """Return the progress that a report of an attempt under way shows."""
        assert report.interval is not None
        return cls(report.images, total, report.loss, report.interval.images_per_second, report.interval.mfu)

    @property
    def eta_seconds(self) -> float:
        """Time left at the present speed."""
        return (self.total - self.images) / max(self.images_per_second, 1e-9)


ProgressSink = Callable[[Progress], None]
