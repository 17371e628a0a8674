"""The composition root: from a configuration to a wired training job. The one place that knows every stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict
from safetensors.torch import save_file

from causalfusion import Objective, build_model, draws

from .config.schema import Experiment
from .data.manifest import Manifest
from .data.read import Batch, Dataset
from .sampling.generate import Request, generate_together, labels_in_turn
from .tracking.mlflow import MlflowTracker
from .tracking.tracker import NoTracker, Tracker
from .train.ema import Ema
from .train.engine import build_engine, choose_precision
from .train.hooks import CheckpointHook, MetricsHook, SampleGridHook, find_checkpoint, restore
from .train.loop import Hook, TrainLoop, TrainState
from .train.progress import ProgressSink

GRID_SAMPLES_PER_CLASS = 8
FINAL_SAMPLES_FILE = "samples/final.safetensors"


class Job(BaseModel):
    """What every worker of a run is given."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    experiment: Experiment
    mlflow_run_id: str
    bad_shards: tuple[str, ...] = ()
    """Shards that the run goes without."""

    @property
    def checkpoints(self) -> Path:
        """Folder of the run's checkpoints."""
        return self.experiment.run_dir / "checkpoints"


@dataclass(frozen=True)
class Surroundings:
    """What differs between a Ray worker and a process on its own."""

    device: torch.device
    batches: Callable[[Experiment, Dataset, int, int], Iterator[Batch]]
    """(experiment, data, start, stop) → this rank's part of the global batches of rows start … stop − 1.

    Reading starts at the call, not with the first batch."""
    progress: ProgressSink
    saved: Callable[[Path, int], None]
    """Called on every rank after a checkpoint: (folder, images seen)."""


@dataclass(frozen=True)
class TrainingTimes:
    """What the workers measured."""

    train_seconds: float
    """Optimizer steps alone, waiting for data included."""
    hook_seconds: float
    """Metrics, checkpoints and grids."""
    sample_seconds: float
    """The final samples."""
    images: int
    """Images trained on by this launch; fewer than the run's if it resumed."""


def train_and_sample(job: Job, around: Surroundings) -> TrainingTimes:
    """Train one rank's part of a job to its end, then generate the final samples; ranks run it together."""
    experiment = job.experiment
    rank = torch.distributed.get_rank()
    manifest = Manifest.read(experiment.data.path)
    found = find_checkpoint(experiment, job.checkpoints, manifest.digest)
    first = found[1].images_seen if found else 0
    total = experiment.train.total_images
    # Reading starts up while the model and the engine are built.
    data = open_dataset(experiment, manifest.without(job.bad_shards))
    batches = around.batches(experiment, data, first, total) if first < total else iter(())
    # Every rank starts from the same weights, whatever else it has drawn.
    torch.manual_seed(draws.stream_seed(experiment.seed, "initial weights"))
    model = build_model(experiment.model)
    precision = choose_precision(experiment.train.precision, around.device)
    objective = Objective(model, experiment.objective, experiment.diffusion)
    engine = build_engine(model, experiment, around.device, precision)
    ema = Ema(model, experiment.optim.ema_decay, warmup=experiment.optim.ema_warmup)
    loop = TrainLoop(experiment, engine, objective, ema, TrainState(), around.device)
    if found:
        restore(loop, *found)

    tracker: Tracker = NoTracker()
    progress: ProgressSink = lambda _: None  # noqa: E731
    if rank == 0:
        tracker, progress = MlflowTracker(experiment.tracking_uri, job.mlflow_run_id), around.progress
    sampler = build_model(experiment.model).to(around.device).eval()
    metrics = MetricsHook(experiment.train.log_every_images, tracker, progress)
    hooks: list[Hook] = [
        metrics,
        SampleGridHook(
            experiment.train.sample_every_images,
            sampler,
            sample_request(experiment, GRID_SAMPLES_PER_CLASS * len(manifest.class_names), precision == "bf16"),
            manifest.class_names,
            experiment.run_dir / "samples",
            tracker,
        ),
        CheckpointHook(
            experiment.train.checkpoint_every_images,
            job.checkpoints,
            experiment.train.keep_checkpoints,
            manifest.digest,
            around.saved,
        ),
    ]
    started = time.perf_counter()
    loop.run(batches, hooks)
    loop_seconds = time.perf_counter() - started

    started = time.perf_counter()
    sampler.load_state_dict(ema.full_state())
    request = sample_request(experiment, experiment.evaluation.num_samples, precision == "bf16")
    latents = generate_together(sampler, request)
    if rank == 0:
        path = experiment.run_dir / FINAL_SAMPLES_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"latents": latents, "labels": request.labels}, path)
    return TrainingTimes(
        train_seconds=metrics.training_seconds,
        hook_seconds=loop_seconds - metrics.training_seconds,
        sample_seconds=time.perf_counter() - started,
        images=loop.state.images_seen - first,
    )


def open_dataset(experiment: Experiment, manifest: Manifest) -> Dataset:
    """Return the experiment's data, and how a latent is drawn from each row."""
    data = experiment.data
    return Dataset(
        folder=data.path,
        manifest=manifest,
        seed=experiment.seed,
        window_rows=data.window_rows,
        sample_posterior=manifest.posterior and data.posterior == "sample",
        flip=manifest.flip and data.flip is not False,
    )


def sample_request(experiment: Experiment, count: int, bf16: bool) -> Request:
    """Return a request for `count` samples with labels in turn, from the experiment's own seed."""
    return Request(
        labels=labels_in_turn(count, experiment.model.num_classes),
        sampling=experiment.sampling,
        diffusion=experiment.diffusion,
        seed=experiment.seed,
        bf16=bf16,
        batch_size=experiment.evaluation.batch_size,
    )
