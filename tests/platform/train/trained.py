"""Real training of the tiny model in this process, for tests of what happens context it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from causalfusion_platform.assemble import Job, build_guard, build_loop, build_saver
from causalfusion_platform.checkpoint.manifest import config_digest
from causalfusion_platform.checkpoint.save import Saver
from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.data.read import Batch
from causalfusion_platform.launch.training.worker import initialize_single_process_group
from causalfusion_platform.tasks import open_task
from causalfusion_platform.tracking.journal import Journal
from causalfusion_platform.train.checkpointing import CheckpointHook, Fixed
from causalfusion_platform.train.control import LocalControl
from causalfusion_platform.train.device import Peak
from causalfusion_platform.train.loop import TrainLoop
from causalfusion_platform.train.metrics import MetricsHook, Spent
from causalfusion_platform.train.resume import Resume

BATCH = 8
CPU = torch.device("cpu")
DATA = "d" * 64


def alone() -> None:
    """Make this process a group of one, as `--local` does: DeepSpeed needs the first one for good."""
    initialize_single_process_group("gloo")


def tiny(root: Path, images: int = 10 * BATCH, **changes: Any) -> Experiment:
    """Return an experiment of a few steps."""
    train = {"images": images, "global_batch_size": BATCH, "precision": "fp32", "log_every_images": BATCH}
    train |= {"staging": root / "staging", **changes.pop("train", {})}
    optim = {"base_lr": 0.032, **changes.pop("optim", {})}
    tree = {"name": "test", "runs": root / "runs", "model": {"preset": "tiny"}}
    return Experiment.model_validate({**tree, "train": train, "optim": optim, **changes})


def rows(start: int, stop: int) -> Iterator[Batch]:
    """Batches of noise, each row of which is a function of its position."""
    for first in range(start, stop, BATCH):
        generator = torch.Generator().manual_seed(first)
        yield Batch(
            samples=range(first, first + BATCH),
            row_ids=torch.arange(first, first + BATCH),
            latents=torch.randn(BATCH, 1, 8, 8, generator=generator),
            labels=torch.arange(first, first + BATCH) % 10,
        )


class RecordingControl(LocalControl):
    """A control that keeps its notes."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """Keep a note."""
        self.notes.append(text)


class Training:
    """A job with its loop, its guard and its checkpoints, wired as in a run."""

    def __init__(self, experiment: Experiment, resume: Resume | None = None, **job: Any) -> None:
        alone()
        self.job = Job(experiment=experiment, mlflow_run_id="run", **job)
        experiment.run_dir.mkdir(parents=True, exist_ok=True)
        self.journal = Journal(experiment.run_dir)
        self.control = RecordingControl()
        self.spent = Spent()
        self.task = open_task(experiment)
        self.loop: TrainLoop = build_loop(self.job, self.task, CPU, "fp32", 1000, resume)
        self.guard = build_guard(self.job, self.loop, resume, self.journal, self.control)
        self.metrics = MetricsHook(experiment.train.log_every_images, None, self.spent, Peak(None, "not known"))
        self.checkpoints = self.checkpoint_hook(build_saver(self.job))

    def checkpoint_hook(self, saver: Saver) -> CheckpointHook:
        """Return the hook that saves with `saver`."""
        experiment = self.job.experiment
        return CheckpointHook(
            experiment.train.checkpoint_every_images,
            saver,
            Fixed(config_digest(experiment), DATA, {"torch": "x"}, "fp32"),
            guard=self.guard,
            metrics=self.metrics,
            spent=self.spent,
            control=self.control,
            journal=self.journal,
            attempt=self.job.attempt,
            save_weights=self.task.save_weights,
            mlflow_run_id=lambda: self.job.mlflow_run_id,
        )

    def train(self, *more: Any, until: int | None = None) -> None:
        """Train to the end, or up to so many images; `more` hooks come after those of a run."""
        hooks = [self.guard, self.metrics, self.checkpoints, *more]
        total = self.job.experiment.train.total_images
        batches = rows(self.loop.state.images_seen, until or total)
        try:
            self.loop.run(batches, hooks)
        except StopIteration:
            assert until == self.loop.state.images_seen

    def weights(self) -> list[torch.Tensor]:
        """Return copies of the model's weights."""
        return [parameter.detach().clone() for parameter in self.loop.engine.module.parameters()]
