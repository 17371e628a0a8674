"""What training does periodically: metrics, sample grids, checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from causalfusion import Model, save_weights

from ..checkpoint import store
from ..checkpoint.engine_state import load_engine, save_engine
from ..checkpoint.manifest import CheckpointManifest, write_manifest
from ..config.errors import UserError
from ..config.schema import Experiment
from ..sampling.generate import Request, generate_together
from ..sampling.grid import sample_grid
from ..tracking.tracker import Tracker
from .loop import StepResult, TrainLoop
from .progress import Progress, ProgressSink


class MetricsHook:
    """Average metrics over ranks and steps, record them, and report progress."""

    at_end = True

    def __init__(self, every_images: int, tracker: Tracker, progress: ProgressSink) -> None:
        self.every_images = every_images
        self.tracker, self.progress = tracker, progress
        self.results: list[StepResult] = []
        self.since = time.perf_counter()
        self.training_seconds = 0.0

    def observe(self, result: StepResult) -> None:
        """Keep the step's result until the next report."""
        self.results.append(result)

    def run(self, loop: TrainLoop) -> None:
        """Record what the steps since the last report did.

        Raises:
            FloatingPointError: the loss is NaN or infinite, on all ranks alike.
        """
        results, self.results = self.results, []
        sums = torch.stack(
            [
                torch.stack([result.step.loss for result in results]).mean(),
                torch.stack([result.step.mse for result in results]).mean(),
            ]
        )
        torch.distributed.all_reduce(sums)
        loss, mse = (sums / torch.distributed.get_world_size()).tolist()  # waits for the device
        # Steps alone, so that checkpoints and grids do not count as training time.
        seconds = sum(result.seconds for result in results)
        images = sum(result.images for result in results)
        self.training_seconds += seconds
        values = {
            "train/loss": loss,
            "train/mse": mse,
            "train/grad_norm": float(results[-1].step.grad_norm),
            "train/learning_rate": results[-1].step.learning_rate,
            "train/ar_steps": sum(result.step.num_ar_steps for result in results) / len(results),
            "throughput/images_per_second": images / seconds,
            "throughput/data_wait": sum(result.data_seconds for result in results) / seconds,
        }
        state = loop.state
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss} at {state.images_seen} images (step {state.step}); the last checkpoint is "
                f"untouched. Lower optim.base_lr or lengthen optim.warmup_images under a new name"
            )
        self.tracker.metrics(values, state.images_seen)
        self.progress(Progress(state.images_seen, loop.experiment.train.total_images, loss, images / seconds))


class SampleGridHook:
    """Draw a grid of samples from the EMA weights: the same seeds and labels every time."""

    at_end = False

    def __init__(
        self,
        every_images: int,
        model: Model,
        request: Request,
        class_names: list[str],
        folder: Path,
        tracker: Tracker,
    ) -> None:
        self.every_images = every_images
        self.model, self.request, self.class_names = model, request, class_names
        self.folder, self.tracker = folder, tracker

    def observe(self, result: StepResult) -> None:
        """Nothing to keep."""

    def run(self, loop: TrainLoop) -> None:
        """Generate on all ranks; the first draws and records the grid."""
        self.model.load_state_dict(loop.ema.full_state())
        latents = generate_together(self.model, self.request)
        if torch.distributed.get_rank() == 0:
            grid = sample_grid(latents, self.request.labels, self.class_names)
            self.folder.mkdir(parents=True, exist_ok=True)
            grid.save(self.folder / f"images-{loop.state.images_seen:012d}.png")
            self.tracker.image("samples", grid, loop.state.images_seen)


class CheckpointHook:
    """Write a checkpoint: every rank its part, the manifest last."""

    at_end = True

    def __init__(
        self, every_images: int, root: Path, keep: int, data_digest: str, saved: Callable[[Path, int], None]
    ) -> None:
        self.every_images = every_images
        self.root, self.keep, self.data_digest = root, keep, data_digest
        self.saved = saved

    def observe(self, result: StepResult) -> None:
        """Nothing to keep."""

    def run(self, loop: TrainLoop) -> None:
        """Save the engine, the EMA and the weights for people. All ranks call it together."""
        rank, images = torch.distributed.get_rank(), loop.state.images_seen
        folder = store.checkpoint_folder(self.root, images)
        if rank == 0:
            store.clear(folder)
            (folder / "ema").mkdir(parents=True)
        torch.distributed.barrier()
        save_engine(loop.engine, folder / "engine")
        if loop.ema.sharded or rank == 0:
            save_file(loop.ema.average, _ema_file(folder, rank))
        weights = loop.ema.full_state()
        if rank == 0:
            save_weights(folder / store.WEIGHTS_FOLDER, loop.experiment.model, weights, loop.experiment.diffusion)
        torch.distributed.barrier()
        if rank == 0:
            write_manifest(
                folder,
                step=loop.state.step,
                images_seen=images,
                world_size=torch.distributed.get_world_size(),
                zero_stage=loop.experiment.train.zero_stage,
                data_digest=self.data_digest,
            )
            store.prune(self.root, self.keep)
        torch.distributed.barrier()
        self.saved(folder, images)


def find_checkpoint(experiment: Experiment, root: Path, data_digest: str) -> tuple[Path, CheckpointManifest] | None:
    """Return the newest whole checkpoint under `root`, the same on all ranks, which call it together.

    Raises:
        UserError: the checkpoint was made with other workers, another ZeRO stage or other data.
    """
    newest = [store.latest(root) if torch.distributed.get_rank() == 0 else None]
    torch.distributed.broadcast_object_list(newest)  # all ranks take the same one
    if newest[0] is None:
        return None
    folder, manifest = newest[0]
    train = experiment.train
    if (manifest.world_size, manifest.zero_stage) != (train.num_workers, train.zero_stage):
        raise UserError(
            f"{folder} was written by {manifest.world_size} workers with ZeRO stage {manifest.zero_stage}, but "
            f"this run has {train.num_workers} with stage {train.zero_stage}\n"
            f"  resume with train.num_workers={manifest.world_size} train.zero_stage={manifest.zero_stage}, "
            f"or start anew with another name=…"
        )
    if manifest.data_digest != data_digest:
        raise UserError(
            f"{folder} was trained on data {manifest.data_digest[:12]}…, but data.path holds {data_digest[:12]}…\n"
            f"  point data.path at the old shards, or start anew with another name=…"
        )
    return folder, manifest


def restore(loop: TrainLoop, folder: Path, manifest: CheckpointManifest) -> None:
    """Put a checkpoint's engine state, EMA and position into the loop. All ranks call it together."""
    load_engine(loop.engine, folder / "engine")
    loop.ema.load(load_file(_ema_file(folder, torch.distributed.get_rank() if loop.ema.sharded else 0)))
    loop.state.step, loop.state.images_seen = manifest.step, manifest.images_seen


def _ema_file(folder: Path, rank: int) -> Path:
    return folder / "ema" / f"rank-{rank:05d}.safetensors"
