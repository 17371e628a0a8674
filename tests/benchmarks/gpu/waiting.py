"""Places where the host waits for the GPU."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Count the synchronizations of the block, by the place in the code that caused them: `file:line` → count."""
    places: Counter[str] = Counter()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield places
    finally:
        torch.cuda.set_sync_debug_mode("default")
    places.update(
        f"{warning.filename.rsplit('site-packages/')[-1]}:{warning.lineno}"
        for warning in caught
        if "synchroniz" in str(warning.message)
    )
