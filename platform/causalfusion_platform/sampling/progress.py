"""Progress of the generation of a sample set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Generating:
    """Progress, as of the newest finished part."""

    done: int
    """Samples in finished parts, by all launches."""
    total: int
    samples_per_second: float
    """Speed of this launch. 0: not known yet."""

    @property
    def eta_seconds(self) -> float:
        """Time left at the present speed."""
        return (self.total - self.done) / max(self.samples_per_second, 1e-9)


GeneratingSink = Callable[[Generating], None]
