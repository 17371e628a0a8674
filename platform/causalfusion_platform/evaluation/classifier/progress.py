"""Progress of work that may take long, in the log."""

from __future__ import annotations

import logging
import time

logger = logging.getLogger(__name__)

FIRST_SECONDS, EVERY_SECONDS = 3.0, 10.0


class LoggedProgress:
    """Log the progress of work that takes more than 3 s, then every 10 s, and its end."""

    def __init__(self, doing: str, total: int) -> None:
        """Begin work on `total` images, such as `training the classifier of shards/digits`."""
        self.doing, self.total = doing, total
        self.began = time.monotonic()
        self.next = self.began + FIRST_SECONDS

    def show(self, done: int) -> None:
        """Report the number of images done so far."""
        now = time.monotonic()
        if now < self.next:
            return
        self.next = now + EVERY_SECONDS
        left = (now - self.began) * (self.total - done) / max(done, 1)
        logger.info(f"{self.doing}: {done:,} of {self.total:,} images, about {left:.0f} s left")

    def finish(self) -> None:
        """Report the end, if anything was reported before."""
        seconds = time.monotonic() - self.began
        if seconds >= FIRST_SECONDS:
            logger.info(f"{self.doing}: done in {seconds:.0f} s")
