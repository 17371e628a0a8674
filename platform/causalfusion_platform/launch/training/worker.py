"""One training process: inside a Ray Train worker, or on its own."""

from __future__ import annotations

import atexit
import dataclasses
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from ...assemble import Job, WorkerContext, train_and_sample
from ...config.schema import Experiment
from ...data.in_memory import batches_in_memory
from ...data.prefetch import read_ahead
from ...data.read import Collate, Dataset, local_batches, to_batch
from ...storage.fence import Superseded
from ...train.checkpointing import NotSaved
from ...train.control import LocalControl, Stopped
from ...train.guard import Diverged
from ...train.progress import ProgressSink
from ..runs.signals import StopRequest

if TYPE_CHECKING:
    from ...data.stream import StreamSpec

Ended = dict[str, Any]
"""End of training: `how` (done, stopped, preempted, storage, superseded, diverged), `detail`, `images`, `times` if
done."""


def stream_spec(
    experiment: Experiment, dataset: Dataset, start: int, stop: int, collate: Collate = to_batch
) -> StreamSpec:
    """Return the data that Ray Data is to stream for an experiment."""
    from ...data.stream import StreamSpec

    data = experiment.data
    return StreamSpec(
        data=dataset,
        batch_size=experiment.train.global_batch_size,
        start=start,
        stop=stop,
        cpus_per_task=data.cpus_per_task,
        concurrency=data.concurrency,
        prefetch_batches=data.prefetch_batches,
        collate=collate,
    )


def ray_worker(job: Job, actor: Any) -> None:
    """Train inside a Ray Train worker.

    Args:
        job: the training.
        actor: the ProgressActor actor that takes in progress and times.
    """
    import ray.train
    import ray.train.torch

    from .heartbeat import Heartbeat
    from .own_folder import own_folder

    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    # As many threads as CPUs were reserved: trials of a sweep share a machine, and cannot see one another.
    torch.set_num_threads(max(1, int(job.experiment.train.cpus_per_worker)))

    def batches(experiment: Experiment, dataset: Dataset, collate: Collate, start: int, stop: int) -> Iterator[Any]:
        if experiment.data.in_memory:
            mine = batches_in_memory(
                dataset,
                batch_size=experiment.train.global_batch_size,
                start=start,
                stop=stop,
                rank=rank,
                num_workers=world,
                collate=collate,
            )
            return read_ahead(mine, experiment.data.prefetch_batches)
        return _stream(stream_spec(experiment, dataset, start, stop, collate), rank, world)

    heartbeat = Heartbeat(actor, rank)
    heartbeat.start()
    try:
        _import_deepspeed(ray.train.torch.get_device())
        context = WorkerContext(
            device=ray.train.torch.get_device(),
            batches=batches,
            progress=lambda progress: actor.show.remote(progress),
            control=heartbeat,
        )
        with own_folder(job, actor, rank) as own:
            ended = _train(own, context)
    finally:
        heartbeat.end()
    if rank == 0:
        ray.get(actor.finish.remote(ended))


def _stream(spec: StreamSpec, rank: int, world: int) -> Iterator[Any]:
    """Return the batches that Ray Data streams to this worker. All ranks call it together."""
    import ray.train.collective

    from ...data.stream import start_coordinator, worker_batches

    # The first worker owns the coordinator, which ends with it, even if the worker is lost. A reference to its
    # handle is passed on: Ray Train's actor in between would import the coordinator's module to read a handle.
    own = [ray.put(start_coordinator(spec, world))] if rank == 0 else None
    [handle] = ray.train.collective.broadcast_from_rank_zero(own)
    return worker_batches(ray.get(handle), spec, rank, world)


def _import_deepspeed(device: torch.device) -> None:
    """Import DeepSpeed without the MLflow that it looks for: workers never talk to MLflow, whose import is slow.

    Not for the driver, where another thread may be importing MLflow meanwhile.
    """
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    absent = sys.modules.setdefault("mlflow", None) is None  # type: ignore[arg-type]
    import deepspeed  # noqa: F401

    if absent:
        del sys.modules["mlflow"]


def local_worker(job: Job, stop: StopRequest, progress: ProgressSink) -> Ended:
    """Run the same training in this process, without Ray: for debugging and single-GPU machines."""

    def batches(experiment: Experiment, dataset: Dataset, collate: Collate, start: int, stop: int) -> Iterator[Any]:
        batch_size = experiment.train.global_batch_size
        return local_batches(dataset, batch_size=batch_size, start=start, stop=stop, collate=collate)

    device = torch.device("cuda" if job.experiment.train.gpus_per_worker else "cpu")
    initialize_single_process_group("nccl" if device.type == "cuda" else "gloo")
    control = LocalControl(stop.reason)
    stop.on_request = lambda reason: setattr(control, "stop", reason)
    return _train(job, WorkerContext(device, batches, progress, control))


def _train(job: Job, context: WorkerContext) -> Ended:
    """Train, and return the end that all ranks have agreed on as a report."""
    try:
        times = train_and_sample(job, context)
    except Stopped as stopped:
        detail = "checkpoints cannot be written" if stopped.reason == "storage" else ""
        return {"how": stopped.reason, "detail": detail, "images": context.control.images}
    except Superseded as fault:
        return {"how": "superseded", "detail": str(fault), "images": context.control.images}
    except Diverged as diverged:
        return {"how": "diverged", "detail": str(diverged), "images": context.control.images}
    except NotSaved as fault:
        return {"how": "storage", "detail": str(fault), "images": context.control.images}
    images = job.experiment.train.total_images
    return {"how": "done", "detail": "", "images": images, "times": dataclasses.asdict(times)}


def initialize_single_process_group(backend: str) -> None:
    """Make this process a process group of one, unless it is in a group already."""
    # DeepSpeed reads its place from the environment, as launchers set it, and keeps process groups for good: a
    # second run in this process must find the first one's group alive.
    os.environ.update({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"})
    if not torch.distributed.is_initialized():
        store = torch.distributed.HashStore()  # type: ignore[attr-defined]
        torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
        atexit.register(torch.distributed.destroy_process_group)
