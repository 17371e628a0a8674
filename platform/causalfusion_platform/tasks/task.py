"""A task: what a run learns. The loop, checkpoints, supervision, accounting and tracking know none."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from causalfusion.weights.folder import WEIGHTS_FILE

from ..config.schema import Experiment
from ..data.manifest import Manifest
from ..data.read import Columns
from ..data.validate import CheckedShards
from ..tracking.journal import Journal
from ..tracking.tracker import Tracker
from ..train.control import Control
from ..train.loop import Hook, TrainLoop
from ..train.metrics import Spent
from ..train.objective import TrainingObjective
from ..train.optimizer import ParameterGroup


@dataclass(frozen=True)
class TaskContext:
    """What one rank's hooks of a task work with."""

    device: torch.device
    bf16: bool
    """Whether matrix products are in bf16."""
    manifest: Manifest
    """The shards that the run reads."""
    tracker: Tracker
    journal: Journal | None
    """On the first rank; None on the others."""
    attempt: int
    control: Control
    spent: Spent
    """The run's clock, which hooks write their seconds into."""


class Task(ABC):
    """One task of one experiment. Made anew in the driver and in every worker.

    Only `collate`, `build_model` and `objective` must be given. A second task needs changes nowhere else.
    """

    fields: ClassVar[tuple[str, ...]]
    """Fields that are read of each row: columns of the shards, and `latent`, which is drawn from its posterior."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment

    def check(self, shards: CheckedShards) -> None:  # noqa: B027
        """Check that the data suit the task, before anything is started.

        Raises:
            UserError: they do not.
        """

    @staticmethod
    @abstractmethod
    def collate(columns: Columns, first_sample: int) -> Any:
        """Make one worker's batch of its rows.

        Args:
            columns: `row_id` and the task's fields, each (B, …).
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

    def hooks(self, context: TaskContext) -> Sequence[Hook]:
        """Return the task's own periodic work, such as sample grids."""
        return ()

    def save_weights(self, folder: Path, weights: dict[str, Tensor]) -> None:
        """Write whole weights, fp32, for people.

        The file `model.safetensors` is also what a resumed run takes its average from.

        Raises:
            OSError, SafetensorError: they cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous().cpu() for name, tensor in weights.items()}, folder / WEIGHTS_FILE)

    def end(self, loop: TrainLoop, context: TaskContext) -> dict[str, Tensor]:
        """Make the run's final tensors, such as samples, after the last step. Ranks call it together.

        Returns:
            Tensors that `evaluate` needs. They are saved in the run's folder; empty: none are.
        """
        return {}

    def evaluate(self, final: dict[str, Tensor], manifest: Manifest, tracker: Tracker) -> dict[str, Any]:
        """Measure and export the end of a run, in the driver.

        Args:
            final: the tensors of `end`.
            manifest: the shards that the run read.
            tracker: takes metrics and files for MLflow.

        Returns:
            What summary.json holds of it.
        """
        return {}

    def scores(self) -> list[str]:
        """Return the keys of summary.json that trials of a sweep can be ranked by."""
        return []

    def scores_while_training(self) -> list[str]:
        """Return the scores that hooks record in the journal during training."""
        return []
