"""Streaming latents through Ray Data, with all shuffling and drawing on, beside a bare read of the same files."""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import ray

from causalfusion_platform.config.schema import DataConfig
from causalfusion_platform.data.manifest import Manifest
from causalfusion_platform.data.read import Dataset
from causalfusion_platform.data.stream import StreamSpec, make_coordinator, worker_batches
from causalfusion_platform.launch.cluster.session import ray_session

from .latents import write_random_latents

SHAPES = {"16×16×16": (16, 16, 16), "32×32×4": (4, 32, 32)}
ROWS = 32_768  # one GiB of shards
EPOCHS = 2.5
ROUNDS = 3
BATCH = 256
STORE = 400 * 2**20
"""Object store of the measurement of memory: less than half of the data set."""


@dataclass(frozen=True)
class Streamed:
    """One pass over the stream by one worker."""

    rows_per_second: float
    """From the request of the first batch to the last, the coordinator's process being there already."""
    first_batch: float
    """Seconds until it came."""


def bare_read(folder: Path, manifest: Manifest) -> float:
    """Return rows per second of reading every row group with pyarrow's threads, page checksums verified."""
    started = time.perf_counter()
    for shard in manifest.shards:
        file = pq.ParquetFile(folder / shard.file, page_checksum_verification=True)
        for group in range(file.num_row_groups):
            file.read_row_group(group)
    return manifest.rows / (time.perf_counter() - started)


def stream(folder: Path, manifest: Manifest, rows: int) -> Streamed:
    """Stream rows with the platform's defaults; the model's work is left out, so that reading is all there is."""
    defaults = DataConfig()
    data = Dataset(folder, manifest, 0, defaults.window_rows, sample_posterior=True, flip=True)
    spec = StreamSpec(data, BATCH, 0, rows, defaults.cpus_per_task, defaults.concurrency, defaults.prefetch_batches)
    coordinator = make_coordinator(spec, 1)
    ray.get(coordinator.__ray_ready__.remote())
    started = time.perf_counter()
    ray.get(coordinator.start.remote())
    batches = worker_batches(coordinator, spec, 0, 1)
    seen = len(next(batches).labels)
    first = time.perf_counter() - started
    seen += sum(len(batch.labels) for batch in batches)
    seconds = time.perf_counter() - started
    ray.kill(coordinator)
    assert seen == rows
    return Streamed(rows / seconds, first)


@contextmanager
def peak_memory() -> Iterator[dict[str, float]]:
    """Watch Ray's processes while the body runs: peak MiB of their own memory together, and of the object store."""
    peak = {"processes": 0.0, "object store": 0.0}
    stop, before = threading.Event(), psutil.virtual_memory().shared

    def watch() -> None:
        while not stop.wait(0.5):
            own = 0
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    own += process.memory_full_info().uss
            shared = psutil.virtual_memory().shared - before  # the object store is all the machine's shared memory
            peak["processes"] = max(peak["processes"], own / 2**20)
            peak["object store"] = max(peak["object store"], shared / 2**20)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def run() -> None:
    """Print rows/s and MB/s of both, their ratio, the wait for the first batch, and the peak of memory."""
    print("\nstreaming latents with posterior and mirrored images (32 KiB a row), one worker, batches of 256")
    print(f"{'latents':<12}{'bare rows/s':>12}{'ours rows/s':>12}{'ours MB/s':>11}{'ratio':>7}{'first s':>9}")
    with tempfile.TemporaryDirectory() as scratch:
        with ray_session():
            for name, shape in SHAPES.items():
                folder = Path(scratch) / name
                manifest = write_random_latents(folder, shape, ROWS)
                stream(folder, manifest, BATCH)  # starts the processes that Ray keeps for tasks
                bare, ours = [], []
                for _ in range(ROUNDS):
                    bare.append(bare_read(folder, manifest))
                    ours.append(stream(folder, manifest, int(EPOCHS * ROWS)))
                speed = statistics.median(one.rows_per_second for one in ours)
                ratio = statistics.median(
                    one.rows_per_second / beside for one, beside in zip(ours, bare, strict=True)
                )
                first = statistics.median(one.first_batch for one in ours)
                per_row = sum(shard.bytes for shard in manifest.shards) / manifest.rows
                print(
                    f"{name:<12}{statistics.median(bare):>12.0f}{speed:>12.0f}{speed * per_row / 1e6:>11.0f}"
                    f"{ratio:>7.2f}{first:>9.2f}"
                )
        with peak_memory() as peak, ray_session(object_store_bytes=STORE):
            folder = Path(scratch) / next(iter(SHAPES))
            stream(folder, Manifest.read(folder), ROWS)
        print(
            f"a data set of {ROWS * 32 // 1024} MiB through an object store of {STORE // 2**20} MiB: "
            f"peak {peak['object store']:.0f} MiB of it, {peak['processes']:.0f} MiB in Ray's processes"
        )
