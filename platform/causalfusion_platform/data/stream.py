"""Ray Data streams windows of shards to the training workers, in one order for any number of them.

Ray Data tasks read the windows of the plan in parallel, anywhere on the cluster; their blocks arrive in plan order
(`preserve_order`) at one feeder, which cuts global batches and hands every worker its rows of each. Ray Data's own
`streaming_split` deals blocks to whichever worker asks first, so its batches differ from run to run.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data
from numpy.typing import NDArray

from .manifest import Manifest
from .plan import Window, windows_between
from .read import Batch, read_window, to_batch

Columns = dict[str, NDArray[np.generic]]

# One Ray Data execution covers at least this many windows, so that its start-up cost (about a second) is paid
# rarely for a small data set, and at most a segment's worth of plan is in memory for a large one.
_SEGMENT_WINDOWS = 64


@dataclass(frozen=True)
class StreamSpec:
    """What to stream: rows start … stop − 1 of a data set's endless stream, as global batches."""

    folder: Path
    manifest: Manifest
    seed: int
    window_rows: int
    batch_size: int
    start: int
    stop: int
    cpus_per_task: float
    concurrency: int
    prefetch_batches: int


class _ReadWindows:
    """The task of Ray Data's map: plan entries in, rows out."""

    def __init__(self, folder: Path, windows: list[Window], seed: int) -> None:
        self.folder, self.windows, self.seed = folder, windows, seed

    def __call__(self, entries: Columns) -> Iterator[Any]:
        for index in entries["window"]:
            yield read_window(self.folder, self.windows[int(index)], self.seed)


def _segments(spec: StreamSpec) -> Iterator[tuple[int, int]]:
    """Cut the stream into runs of whole batches, each one Ray Data execution."""
    window = min(max(spec.window_rows, 1), spec.manifest.rows)
    rows = -(-_SEGMENT_WINDOWS * window // spec.batch_size) * spec.batch_size
    for start in range(spec.start, spec.stop, rows):
        yield start, min(start + rows, spec.stop)


def _segment_batches(spec: StreamSpec, start: int, stop: int) -> Iterator[Columns]:
    windows = list(windows_between(spec.manifest, spec.seed, spec.window_rows, start, stop))
    entries = ray.data.from_items(
        [{"window": index} for index in range(len(windows))], override_num_blocks=len(windows)
    )
    rows = entries.map_batches(
        _ReadWindows(spec.folder, windows, spec.seed).__call__,
        batch_size=1,
        num_cpus=spec.cpus_per_task,
        concurrency=spec.concurrency,
        zero_copy_batch=True,
    )
    yield from rows.iter_batches(
        batch_size=spec.batch_size, batch_format="numpy", prefetch_batches=spec.prefetch_batches
    )


class Feeder:
    """Cut the stream into global batches and deal each worker its rows. Runs as a Ray actor."""

    def __init__(self, spec: StreamSpec, num_workers: int) -> None:
        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        self.num_workers = num_workers
        self.waiting: list[deque[Columns]] = [deque() for _ in range(num_workers)]
        # A thread reads ahead, so that a new segment's start-up hides behind the batches that are ready.
        self.ready: queue.Queue[Columns | Exception | None] = queue.Queue(maxsize=spec.prefetch_batches)
        threading.Thread(target=self._read, args=(spec,), daemon=True).start()

    def _read(self, spec: StreamSpec) -> None:
        try:
            for start, stop in _segments(spec):
                for batch in _segment_batches(spec, start, stop):
                    self.ready.put(batch)
            self.ready.put(None)
        except Exception as error:  # handed to the workers, which stop with it
            self.ready.put(error)

    def next(self, rank: int) -> Columns | None:
        """Return worker `rank`'s rows of its next global batch; None at the end of the stream."""
        if not self.waiting[rank]:
            batch = self.ready.get()
            if batch is None or isinstance(batch, Exception):
                self.ready.put(batch)  # every worker gets to see it
                if batch is None:
                    return None
                raise batch
            for other in range(self.num_workers):
                part = worker_rows(len(batch["label"]), other, self.num_workers)
                self.waiting[other].append({key: column[part] for key, column in batch.items()})
        return self.waiting[rank].popleft()


def worker_rows(batch_size: int, rank: int, num_workers: int) -> slice:
    """Return which rows of a global batch worker `rank` gets: equal, contiguous parts in rank order."""
    return slice(rank * batch_size // num_workers, (rank + 1) * batch_size // num_workers)


def start_feeder(spec: StreamSpec, num_workers: int) -> Any:
    """Start the feeder actor; it lives as long as the process that starts it."""
    # Outside the workers' placement group: it needs no CPU of theirs, nor do its reading tasks.
    options = {"num_cpus": 0, "scheduling_strategy": "DEFAULT"}
    return ray.remote(Feeder).options(**options).remote(spec, num_workers)


def worker_batches(feeder: Any, spec: StreamSpec, rank: int, num_workers: int) -> Iterator[Batch]:
    """Yield worker `rank`'s part of every global batch, asking one batch ahead."""
    pending = [feeder.next.remote(rank), feeder.next.remote(rank)]
    first = spec.start
    while True:
        columns = ray.get(pending.pop(0))
        if columns is None:
            return
        pending.append(feeder.next.remote(rank))
        rows = min(spec.batch_size, spec.stop - first)
        yield to_batch(columns, first + worker_rows(rows, rank, num_workers).start)
        first += spec.batch_size
