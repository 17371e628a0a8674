"""Ray Data stream of windows of shards to the training workers, in one order for any number of workers.

Ray Data tasks read the windows in parallel, anywhere on the cluster, into blocks of Ray's object store. One actor,
the `BatchCoordinator`, takes references to the blocks in stream order (`preserve_order`), cuts global batches, and
assigns every worker its rows of each block. The workers fetch these blocks themselves. Ray Data's own
`streaming_split` gives each block to the first worker that asks, so its batches differ from run to run.
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
from numpy.typing import NDArray

from ..library_warnings import leave_out
from ..ray_private import set_up_ray_data, stream_blocks
from .order import Window
from .prefetch import read_ahead
from .read import Collate, Columns, Dataset, read_window, to_batch, to_columns, worker_rows

# One Ray Data execution covers at least this many windows. Its start-up (about a second) is then rare for a small
# data set, and only the windows of one segment are in memory for a large one.
_SEGMENT_WINDOWS = 64
# Windows that are ready behind the current one.
_READY_WINDOWS = 1


@dataclass(frozen=True)
class StreamSpec:
    """Rows start … stop − 1 of a data set's endless stream as global batches, and the resources to read them."""

    data: Dataset
    batch_size: int
    start: int
    stop: int
    cpus_per_task: float
    concurrency: int
    prefetch_batches: int
    collate: Collate = to_batch
    """Makes a batch of one worker's rows."""


class _ReadWindows:
    """Task of Ray Data's map, from the number of a window to its rows."""

    def __init__(self, data: Dataset, windows: list[Window]) -> None:
        self.data, self.windows = data, windows

    def __call__(self, entries: Columns) -> Iterator[pa.Table]:
        for index in entries["window"]:
            columns = read_window(self.data, self.windows[int(index)])
            yield pa.table({name: _as_arrow(values) for name, values in columns.items()})


def _as_arrow(values: NDArray[np.generic]) -> Any:
    return pa.FixedShapeTensorArray.from_numpy_ndarray(values) if values.ndim > 1 else pa.array(values)


def _segments(spec: StreamSpec) -> Iterator[tuple[int, int]]:
    """Cut the stream into segments of whole batches, one Ray Data execution each."""
    window = min(spec.data.window_rows, spec.data.manifest.rows)
    rows = -(-_SEGMENT_WINDOWS * window // spec.batch_size) * spec.batch_size
    for start in range(spec.start, spec.stop, rows):
        yield start, min(start + rows, spec.stop)


def _segment_windows(spec: StreamSpec, start: int, stop: int) -> Iterator[tuple[Any, int]]:
    """Yield the reference to each window's block and its number of rows, in stream order."""
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
class BlockSlice:
    """Consecutive rows of one block in Ray's object store."""

    block: Any
    """Reference to the block."""
    start: int
    stop: int


BlockSlices = list[BlockSlice]


class BatchCoordinator:
    """Ray actor that cuts the stream into global batches and assigns each worker its rows."""

    def __init__(self, spec: StreamSpec, num_workers: int) -> None:
        set_up_ray_data()
        leave_out()
        self.spec, self.num_workers = spec, num_workers
        self.rows_left = spec.stop - spec.start
        self.current: BlockSlice | None = None
        self.waiting: list[deque[BlockSlices]] = [deque() for _ in range(num_workers)]
        # A thread reads ahead, so that the start-up of a segment overlaps with the use of ready windows.
        self.ready: queue.Queue[BlockSlice | Exception] = queue.Queue(maxsize=_READY_WINDOWS)
        self.reader: threading.Thread | None = None

    def start(self) -> None:
        """Start reading, unless it has started."""
        if self.reader is None:
            self.reader = threading.Thread(target=self._read, daemon=True)
            self.reader.start()

    def _read(self) -> None:
        try:
            for start, stop in _segments(self.spec):
                for block, rows in _segment_windows(self.spec, start, stop):
                    self.ready.put(BlockSlice(block, 0, rows))
        except Exception as error:  # handed to the workers, which stop with it
            self.ready.put(error)

    def next(self, rank: int) -> BlockSlices | None:
        """Return worker `rank`'s rows of its next global batch, or None at the end of the stream."""
        self.start()  # calls of two workers come in any order, so that of `start` may still wait
        if not self.waiting[rank]:
            rows = min(self.spec.batch_size, self.rows_left)
            if not rows:
                return None
            self.rows_left -= rows
            for other in range(self.num_workers):
                part = worker_rows(rows, other, self.num_workers)
                self.waiting[other].append(self._take(part.stop - part.start))
        return self.waiting[rank].popleft()

    def _take(self, rows: int) -> BlockSlices:
        slices = []
        while rows:
            if self.current is None:
                window = self.ready.get()
                if isinstance(window, Exception):
                    self.ready.put(window)  # for the other workers
                    raise window
                self.current = window
            block, start, end = self.current.block, self.current.start, self.current.stop
            stop = min(start + rows, end)
            slices.append(BlockSlice(block, start, stop))
            self.current = BlockSlice(block, stop, end) if stop < end else None
            rows -= stop - start
        return slices


def make_coordinator(spec: StreamSpec, num_workers: int) -> Any:
    """Return a coordinator actor that has not started reading. It ends with the process that makes it."""
    # Outside the workers' placement group, because actor and reading tasks do not use the workers' CPUs.
    options = {"num_cpus": 0, "scheduling_strategy": "DEFAULT"}
    return ray.remote(BatchCoordinator).options(**options).remote(spec, num_workers)


def start_coordinator(spec: StreamSpec, num_workers: int) -> Any:
    """Return a coordinator actor that has started reading."""
    coordinator = make_coordinator(spec, num_workers)
    coordinator.start.remote()
    return coordinator


def worker_batches(coordinator: Any, spec: StreamSpec, rank: int, num_workers: int) -> Iterator[Any]:
    """Yield worker `rank`'s part of every global batch. A thread fetches `prefetch_batches` of them ahead."""
    return read_ahead(_fetch_batches(coordinator, spec, rank, num_workers), spec.prefetch_batches)


def _fetch_batches(coordinator: Any, spec: StreamSpec, rank: int, num_workers: int) -> Iterator[Any]:
    pending = [coordinator.next.remote(rank), coordinator.next.remote(rank)]
    held: tuple[Any, Columns] | None = None  # the current block
    first = spec.start
    while (slices := ray.get(pending.pop(0))) is not None:
        pending.append(coordinator.next.remote(rank))
        parts = []
        for item in slices:
            if held is None or held[0] != item.block:
                held = item.block, to_columns(ray.get(item.block))
            parts.append({name: column[item.start : item.stop] for name, column in held[1].items()})
        columns = parts[0]
        if len(parts) > 1:
            columns = {name: np.concatenate([part[name] for part in parts]) for name in columns}
        rows = min(spec.batch_size, spec.stop - first)
        yield spec.collate(columns, first + worker_rows(rows, rank, num_workers).start)
        first += spec.batch_size
