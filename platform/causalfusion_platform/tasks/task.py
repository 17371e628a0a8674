"""Interface of a task, which a run learns. The loop, checkpoints, supervision and tracking know no single task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from causalfusion.weights.folder import WEIGHTS_FILE

from ..config.errors import UserError
from ..config.schema import Experiment
from ..data.manifest import Manifest
from ..data.noise import noise_columns
from ..data.read import LATENT, Columns, Transform
from ..data.validate import CheckedShards, check_draws, check_fields
from ..tracking.journal import Journal
from ..tracking.tracker import Tracker
from ..train.blocks import blocks_of
from ..train.control import Control
from ..train.loop import Hook, TrainLoop
from ..train.memory import ModelSize
from ..train.metrics import Spent
from ..train.objective import TrainingObjective
from ..train.optimizer import ParameterGroup


@dataclass(frozen=True)
class TaskContext:
    """Objects that one rank's hooks of a task use."""

    device: torch.device
    bf16: bool
    """True if matrix products are in bf16."""
    manifest: Manifest
    """The shards that the run reads."""
    tracker: Tracker
    journal: Journal | None
    """The run's journal on the first rank. None on the others."""
    attempt: int
    control: Control
    spent: Spent
    """Seconds by activity, to which hooks add theirs."""


class Task(ABC):
    """One task of one experiment. The driver and every worker create their own.

    Only `fields`, `collate`, `build_model` and `objective` must be given. A new task needs no change elsewhere.
    """

    fields: ClassVar[tuple[str, ...]]
    """Fields to read of each row: columns of the shards, and `latent`, which is drawn from its posterior."""

    can_be_probed: ClassVar[bool] = False
    """True if a hook follows `evaluation.probe_every_images`."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment

    def check(self, shards: CheckedShards) -> None:  # noqa: B027
        """Check that the data suit the task, before anything is started.

        The fields and the draws of latents are checked for every task: see `check_data`.

        Raises:
            UserError: they do not.
        """

    def check_paths(self) -> None:  # noqa: B027
        """Check other paths of the experiment that the task reads, also where the shards are yet to be written.

        Raises:
            UserError: one is missing or does not suit.
        """

    def prepare(self, shards: CheckedShards) -> None:  # noqa: B027
        """Make what all ranks need beside the shards, once, before they start. `check` has refused nothing.

        Raises:
            UserError: it cannot be made.
        """

    def transform(self) -> Transform | None:
        """Return the function that makes other columns of the fields in the tasks that read them. It is pickled."""
        return None

    @staticmethod
    @abstractmethod
    def collate(columns: Columns, first_sample: int) -> Any:
        """Make one worker's batch of its rows.

        Args:
            columns: `row_id` and the task's fields, each (B, …), or those that `transform` made of them.
            first_sample: position of the first row in the stream: images seen before it.
        """

    @abstractmethod
    def build_model(self) -> nn.Module:
        """Return the model with its initial weights. The caller has seeded torch."""

    def parameter_groups(self, model: nn.Module) -> list[ParameterGroup]:
        """Return the groups of parameters, each with its learning-rate scale and weight decay."""
        return [ParameterGroup(tuple(model.parameters()))]

    @abstractmethod
    def objective(self, model: nn.Module) -> TrainingObjective:
        """Return the loss, bound to a model."""

    def example_batch(self, rows: int) -> Any:
        """Return a batch of noise for a step without data. Latents have the shape of the configured model's."""
        model = self.experiment.model
        shape = (model.in_channels, model.input_size, model.input_size)
        columns, transform = noise_columns(self.fields, rows, shape), self.transform()
        return self.collate(columns if transform is None else transform(columns, range(rows)), 0)

    @cached_property
    def size(self) -> ModelSize:
        """Size of the model. It is built on the meta device, where weights take no memory."""
        with torch.device("meta"):
            model = self.build_model()
        parameters = list(model.parameters())
        return ModelSize(
            sum(parameter.numel() for parameter in parameters),
            max(len(blocks_of(model)), 1),
            frozen=sum(parameter.numel() for parameter in parameters if not parameter.requires_grad),
        )

    def describe_model(self) -> str:
        """Return the sizes of the model for the plan of a run. It follows the number of parameters there."""
        return ""

    def flops(self) -> float | None:
        """Return the FLOPs of training on one row, averaged over steps. None: not known before a run."""
        return None

    def activation_bytes(self, rows: int, precision: str) -> float | None:
        """Estimate the bytes that a worker keeps of `rows` rows for the backward pass.

        Args:
            rows: rows of one micro-batch.
            precision: arithmetic of matrix products, with `auto` decided.

        Returns:
            None: not estimated, and left out of the memory that a run needs.
        """
        return None

    def lengths(self, device: torch.device) -> int | None:
        """Return the number of lengths of training sequences, if all have as many rows. None: not known."""
        return None

    def warm_up(self, engine: Any, device: torch.device, alive: Callable[[], None]) -> int:
        """Run the model once on each kind of sequence, so that compiled blocks are ready before the first step.

        Args:
            engine: holds the model with whole parameters as its `module`.
            device: the device that trains.
            alive: gives a sign of life. It is called after each sequence.

        Returns:
            The number of sequences. 0: the first step compiles.
        """
        return 0

    def hooks(self, context: TaskContext) -> Sequence[Hook]:
        """Return the task's own periodic work, such as sample grids.

        A hook that may take longer than `supervision.hang_seconds` must call `context.control.mark` meanwhile. The
        supervisor ends workers that give no such sign of life.
        """
        return ()

    def save_weights(self, folder: Path, weights: dict[str, Tensor]) -> None:
        """Write whole weights in fp32.

        A resumed run also reads its average from the file `model.safetensors`.

        Raises:
            OSError, SafetensorError: they cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous().cpu() for name, tensor in weights.items()}, folder / WEIGHTS_FILE)

    def end(self, loop: TrainLoop, context: TaskContext) -> dict[str, Tensor]:
        """Make the run's final tensors, such as samples, after the last step. Ranks call it together.

        Long work must call `context.control.mark` from time to time, as in `hooks`.

        Returns:
            Tensors that `evaluate` needs. Those of rank 0 are saved in the run's folder, unless there are none.
        """
        return {}

    def evaluate(self, final: dict[str, Tensor], manifest: Manifest, tracker: Tracker) -> dict[str, Any]:
        """Measure and export the end of a run, in the driver.

        Args:
            final: the tensors of `end`.
            manifest: the shards that the run read.
            tracker: takes metrics and files for MLflow.

        Returns:
            Its part of summary.json.
        """
        return {}

    def scores(self) -> list[str]:
        """Return the keys of summary.json that trials of a sweep can be ranked by."""
        return []

    def scores_on(self, manifest: Manifest) -> list[str]:
        """Return those of `scores` that a run on these shards measures."""
        return self.scores()

    def classifier_of(self, shards: CheckedShards) -> str | None:
        """Return the hash of the classifier that scores of a run on these shards depend on, or None.

        Scores under two classifiers are not compared. A summary holds its own as `classifier_sha256`.
        """
        return None

    def show_scores(self, summary: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Return names and values that the terminal shows at the end of a run. The default is all of `scores`."""
        return [(name, f"{value:.4g}") for name in self.scores() if (value := summary.get(name)) is not None]

    def shortfall(self, summary: Mapping[str, Any]) -> str | None:
        """Return why a finished run is near chance, so that no sweep calls it its best.

        Args:
            summary: content of its summary.json.

        Returns:
            None: it is not, or it is not known.
        """
        return None

    def scores_while_training(self) -> list[str]:
        """Return the scores that hooks record in the journal during training."""
        return []


def check_data(task: Task, shards: CheckedShards) -> None:
    """Check that a task can train on these shards: its fields, the draws of its latents, and the task's own checks.

    Raises:
        UserError: the first fault found.
    """
    experiment, manifest = task.experiment, shards.manifest
    if experiment.evaluation.probe_every_images is not None and not task.can_be_probed:
        raise UserError(
            f"evaluation.probe_every_images is for class_to_image and text_image, not task={experiment.task}\n"
            f"  leave it out"
        )
    check_fields(manifest, task.fields, shards.folder, experiment.task)
    if LATENT in task.fields:
        check_draws(manifest, experiment.data.flip, shards.folder)
    task.check_paths()
    task.check(shards)
