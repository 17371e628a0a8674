"""One training process: inside a Ray Train worker, or on its own."""

from __future__ import annotations

import atexit
import dataclasses
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..assemble import Job, Surroundings, TrainingTimes, train_and_sample
from ..config.schema import Experiment
from ..data.read import Batch, Dataset, local_batches
from ..data.stream import StreamSpec, start_feeder, worker_batches
from ..train.progress import ProgressSink


def stream_spec(experiment: Experiment, dataset: Dataset, start: int, stop: int) -> StreamSpec:
    """Return what Ray Data is to stream for an experiment."""
    data = experiment.data
    return StreamSpec(
        data=dataset,
        batch_size=experiment.train.global_batch_size,
        start=start,
        stop=stop,
        cpus_per_task=data.cpus_per_task,
        concurrency=data.concurrency,
        prefetch_batches=data.prefetch_batches,
    )


def ray_worker(job: Job, board: Any) -> None:
    """Train inside a Ray Train worker.

    Args:
        job: what to train.
        board: the Board actor that takes in progress and times.
    """
    import ray.train
    import ray.train.collective
    import ray.train.torch

    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    # As many threads as CPUs were reserved: trials of a sweep share a machine, and cannot see one another.
    torch.set_num_threads(max(1, int(job.experiment.train.cpus_per_worker)))

    def batches(experiment: Experiment, dataset: Dataset, start: int, stop: int) -> Iterator[Batch]:
        spec = stream_spec(experiment, dataset, start, stop)
        # The first worker owns the feeder; it ends with it, also when the worker is lost.
        feeder = ray.train.collective.broadcast_from_rank_zero(start_feeder(spec, world) if rank == 0 else None)
        return worker_batches(feeder, spec, rank, world)

    def saved(folder: Path, images_seen: int) -> None:
        # Ray is told where the checkpoint is. The workers have written it to its place already.
        with tempfile.TemporaryDirectory() as pointer:
            (Path(pointer) / "pointer.json").write_text(json.dumps({"checkpoint": str(folder)}))
            checkpoint = ray.train.Checkpoint.from_directory(pointer) if rank == 0 else None
            ray.train.report({"images_seen": images_seen}, checkpoint=checkpoint)

    times = train_and_sample(
        job,
        Surroundings(
            device=ray.train.torch.get_device(),
            batches=batches,
            progress=lambda progress: board.show.remote(progress),
            saved=saved,
        ),
    )
    if rank == 0:
        ray.get(board.finish.remote(dataclasses.asdict(times)))


def local_worker(job: Job, progress: ProgressSink) -> TrainingTimes:
    """Run the same training in this process, without Ray: for debugging and single-GPU machines."""

    def batches(experiment: Experiment, dataset: Dataset, start: int, stop: int) -> Iterator[Batch]:
        return local_batches(dataset, batch_size=experiment.train.global_batch_size, start=start, stop=stop)

    device = torch.device("cuda" if job.experiment.train.gpus_per_worker else "cpu")
    _be_the_only_process("nccl" if device.type == "cuda" else "gloo")
    return train_and_sample(job, Surroundings(device, batches, progress, lambda *_: None))


def _be_the_only_process(backend: str) -> None:
    # DeepSpeed reads its place from the environment, as launchers set it, and keeps process groups for good: a
    # second run in this process must find the first one's group alive.
    os.environ.update({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"})
    if not torch.distributed.is_initialized():
        store = torch.distributed.HashStore()  # type: ignore[attr-defined]
        torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
        atexit.register(torch.distributed.destroy_process_group)
