"""Times of alternatives, taken in turns so that a busy machine slows all of them alike.

Time is that of the processor. Waiting for a turn on it does not count.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def interleaved(
    alternatives: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int = 2
) -> dict[str, float]:
    """Run every alternative once a round; return the median CPU seconds of each, without the first rounds."""
    samples: dict[str, list[float]] = {name: [] for name in alternatives}
    for _ in range(rounds + warmup):
        for name, work in alternatives.items():
            started = time.process_time()
            work()
            samples[name].append(time.process_time() - started)
    return {name: statistics.median(times[warmup:]) for name, times in samples.items()}
