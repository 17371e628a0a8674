"""Ray Data pipeline from images to shards: decode (tasks) → encode (pool of actors) → write (tasks)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray.data

from ...ray_private import set_up_ray_data
from ..sources import Listing, Reader
from .plan import EncodingPlan
from .progress import EncodingCounter, EncodingProgress
from .resources import PipelineResources
from .stages import Decode, Encode, Write

_WRITE_CPUS = 0.1


def run_pipeline(
    plan: EncodingPlan,
    listing: Listing,
    reader: Reader,
    vae: str,
    shards: Sequence[int],
    folder: Path,
    records: Path,
    resources: PipelineResources,
    show: Callable[[EncodingProgress], None],
) -> None:
    """Encode the missing shards, in order.

    Raises:
        UserError: an image has a fault whose policy is to stop.
    """
    counter = ray.remote(EncodingCounter).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()
    total = len(plan.order)
    done = total - sum(len(plan.items(shard)) for shard in shards)
    table = ray.put(listing.table)
    # In a process of its own, so that the output of Ray Data goes to its log and not to the terminal.
    conduct = ray.remote(_conduct).options(num_cpus=0, max_retries=0)
    with _following(counter, done, total, show):
        ray.get(conduct.remote(plan, [table], reader, vae, shards, folder, records, resources, counter))
    ray.kill(counter)


def _conduct(
    plan: EncodingPlan,
    table: list[Any],
    reader: Reader,
    vae: str,
    shards: Sequence[int],
    folder: Path,
    records: Path,
    resources: PipelineResources,
    counter: Any,
) -> None:
    settings = plan.settings
    set_up_ray_data(whole_blocks=True)  # a block is a chunk of the plan
    chunks = plan.chunks(shards)
    encoder = {
        "vae": vae,
        "flip": settings.flip,
        "bf16": settings.bf16,
        "batch_size": settings.batch_size,
        "device": "cuda" if resources.gpus_per_encoder else "cpu",
        "threads": resources.threads,
        "counter": counter,
    }
    pipeline = (
        ray.data.from_items([{"chunk": index} for index in range(len(chunks))], override_num_blocks=len(chunks))
        .map_batches(
            Decode(plan, table[0], reader, chunks).__call__,
            batch_size=1,
            num_cpus=resources.cpus_per_decoder,
            compute=ray.data.TaskPoolStrategy(size=resources.decoders),
        )
        .map_batches(
            Encode,
            fn_constructor_kwargs=encoder,
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=resources.cpus_per_encoder,
            num_gpus=resources.gpus_per_encoder or None,
            compute=ray.data.ActorPoolStrategy(size=resources.encoders),
            zero_copy_batch=True,
        )
        .map_batches(
            Write(plan, folder, records).__call__,
            batch_size=settings.rows_per_shard,
            batch_format="pyarrow",
            num_cpus=_WRITE_CPUS,
            zero_copy_batch=True,
        )
    )
    for _ in pipeline.iter_rows():
        pass


@contextmanager
def _following(counter: object, done: int, total: int, show: Callable[[EncodingProgress], None]) -> Iterator[None]:
    """Show progress twice a second while the body runs, and once after it."""
    stop = threading.Event()
    began: list[float] = []

    def look() -> None:
        items, images, faults = ray.get(counter.read.remote())  # type: ignore[attr-defined]
        if items and not began:
            began.append(time.perf_counter())
        seconds = time.perf_counter() - began[0] if began else 0.0
        show(EncodingProgress(done + items, total, images / seconds if seconds > 1 else 0.0, faults))

    def follow() -> None:
        while not stop.wait(0.5):
            look()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5)
    look()
