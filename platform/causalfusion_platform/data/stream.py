"""Ray Data streams windows of shards to the training workers, in one order for any number of them.

Ray Data tasks read the windows of the plan in parallel, anywhere on the cluster, and leave their rows in its object
store. One feeder takes references to them in plan order (`preserve_order`), cuts global batches, and tells every
worker which rows of which window are its own. The workers fetch these themselves: no row passes through the feeder.
Ray Data's own `streaming_split` deals blocks to whichever worker asks first, so its batches differ from run to run.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data

from ..ray_private import keep_order, stream_blocks
from .order import Window
from .read import Batch, Columns, Dataset, read_window, to_batch, to_columns

# One Ray Data execution covers at least this many windows, so that its start-up cost (about a second) is paid
# rarely for a small data set, and at most a segment's worth of plan is in memory for a large one.
_SEGMENT_WINDOWS = 64
# Windows that lie ready behind the one that is being dealt.
_READY_WINDOWS = 1


@dataclass(frozen=True)
class StreamSpec:
    """What to stream: rows start … stop − 1 of a data set's endless stream, as global batches."""

    data: Dataset
    batch_size: int
    start: int
    stop: int
    cpus_per_task: float
    concurrency: int
    prefetch_batches: int


class _ReadWindows:
    """The task of Ray Data's map: plan entries in, rows out."""

    def __init__(self, data: Dataset, windows: list[Window]) -> None:
        self.data, self.windows = data, windows

    def __call__(self, entries: Columns) -> Iterator[pa.Table]:
        for index in entries["window"]:
            columns = read_window(self.data, self.windows[int(index)])
            latent = pa.FixedShapeTensorArray.from_numpy_ndarray(columns.pop("latent"))
            yield pa.table({**columns, "latent": latent})


def _segments(spec: StreamSpec) -> Iterator[tuple[int, int]]:
    """Cut the stream into runs of whole batches, each one Ray Data execution."""
    window = min(spec.data.window_rows, spec.data.manifest.rows)
    rows = -(-_SEGMENT_WINDOWS * window // spec.batch_size) * spec.batch_size
    for start in range(spec.start, spec.stop, rows):
        yield start, min(start + rows, spec.stop)


def _segment_windows(spec: StreamSpec, start: int, stop: int) -> Iterator[tuple[Any, int]]:
    """Yield (reference, rows) of every window's rows, in plan order."""
    windows = list(spec.data.windows(start, stop))
    entries = ray.data.from_items(
        [{"window": index} for index in range(len(windows))], override_num_blocks=len(windows)
    )
    rows = entries.map_batches(
        _ReadWindows(spec.data, windows).__call__,
        batch_size=1,
        num_cpus=spec.cpus_per_task,
        compute=ray.data.TaskPoolStrategy(size=spec.concurrency),
        zero_copy_batch=True,
    )
    yield from stream_blocks(rows)


@dataclass(frozen=True)
class Piece:
    """Consecutive rows of one block in Ray's object store."""

    block: Any
    """Reference to the block."""
    start: int
    stop: int


Pieces = list[Piece]


class Feeder:
    """Cut the stream into global batches and tell each worker its rows. Runs as a Ray actor."""

    def __init__(self, spec: StreamSpec, num_workers: int) -> None:
        keep_order()
        self.spec, self.num_workers = spec, num_workers
        self.rows_left = spec.stop - spec.start
        self.current: Piece | None = None
        self.waiting: list[deque[Pieces]] = [deque() for _ in range(num_workers)]
        # A thread goes ahead, so that a new segment's start-up hides behind the windows that are ready.
        self.ready: queue.Queue[Piece | Exception] = queue.Queue(maxsize=_READY_WINDOWS)

    def start(self) -> None:
        """Start reading."""
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        try:
            for start, stop in _segments(self.spec):
                for block, rows in _segment_windows(self.spec, start, stop):
                    self.ready.put(Piece(block, 0, rows))
        except Exception as error:  # handed to the workers, which stop with it
            self.ready.put(error)

    def next(self, rank: int) -> Pieces | None:
        """Return worker `rank`'s rows of its next global batch; None at the end of the stream."""
        if not self.waiting[rank]:
            rows = min(self.spec.batch_size, self.rows_left)
            if not rows:
                return None
            self.rows_left -= rows
            for other in range(self.num_workers):
                part = worker_rows(rows, other, self.num_workers)
                self.waiting[other].append(self._take(part.stop - part.start))
        return self.waiting[rank].popleft()

    def _take(self, rows: int) -> Pieces:
        """Return the next rows of the stream."""
        pieces = []
        while rows:
            if self.current is None:
                window = self.ready.get()
                if isinstance(window, Exception):
                    self.ready.put(window)  # every worker gets to see it
                    raise window
                self.current = window
            block, start, end = self.current.block, self.current.start, self.current.stop
            stop = min(start + rows, end)
            pieces.append(Piece(block, start, stop))
            self.current = Piece(block, stop, end) if stop < end else None
            rows -= stop - start
        return pieces


def worker_rows(batch_size: int, rank: int, num_workers: int) -> slice:
    """Return which rows of a global batch worker `rank` gets: equal, contiguous parts in rank order."""
    return slice(rank * batch_size // num_workers, (rank + 1) * batch_size // num_workers)


def make_feeder(spec: StreamSpec, num_workers: int) -> Any:
    """Return a feeder actor that does not read yet; it lives as long as the process that makes it."""
    # Outside the workers' placement group: it needs no CPU of theirs, nor do its reading tasks.
    options = {"num_cpus": 0, "scheduling_strategy": "DEFAULT"}
    return ray.remote(Feeder).options(**options).remote(spec, num_workers)


def start_feeder(spec: StreamSpec, num_workers: int) -> Any:
    """Return a feeder actor that has begun to read."""
    feeder = make_feeder(spec, num_workers)
    feeder.start.remote()
    return feeder


def worker_batches(feeder: Any, spec: StreamSpec, rank: int, num_workers: int) -> Iterator[Batch]:
    """Yield worker `rank`'s part of every global batch; a thread fetches `prefetch_batches` of them ahead."""
    ready: queue.Queue[Batch | Exception | None] = queue.Queue(maxsize=spec.prefetch_batches)
    ended = threading.Event()

    def put(item: Batch | Exception | None) -> None:
        while not ended.is_set():
            try:
                ready.put(item, timeout=0.2)
                return
            except queue.Full:
                continue

    def fetch() -> None:
        try:
            for batch in _fetch_batches(feeder, spec, rank, num_workers):
                put(batch)
                if ended.is_set():
                    return
            put(None)
        except Exception as error:
            put(error)

    threading.Thread(target=fetch, daemon=True).start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        ended.set()


def _fetch_batches(feeder: Any, spec: StreamSpec, rank: int, num_workers: int) -> Iterator[Batch]:
    pending = [feeder.next.remote(rank), feeder.next.remote(rank)]
    held: tuple[Any, Columns] | None = None  # the block that is being used up
    first = spec.start
    while (pieces := ray.get(pending.pop(0))) is not None:
        pending.append(feeder.next.remote(rank))
        parts = []
        for piece in pieces:
            if held is None or held[0] != piece.block:
                held = piece.block, to_columns(ray.get(piece.block))
            parts.append({name: column[piece.start : piece.stop] for name, column in held[1].items()})
        columns = parts[0]
        if len(parts) > 1:
            columns = {name: np.concatenate([part[name] for part in parts]) for name in columns}
        rows = min(spec.batch_size, spec.stop - first)
        yield to_batch(columns, first + worker_rows(rows, rank, num_workers).start)
        first += spec.batch_size
