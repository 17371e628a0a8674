"""Interface of a task, which a run learns. The loop, checkpoints, supervision and tracking know no single task."""

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
        """Write whole weights in fp32.

        A resumed run also reads its average from the file `model.safetensors`.

        Raises:
            OSError, SafetensorError: they cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous().cpu() for name, tensor in weights.items()}, folder / WEIGHTS_FILE)

    def end(self, loop: TrainLoop, context: TaskContext) -> dict[str, Tensor]:
        """Make the run's final tensors, such as samples, after the last step. Ranks call it together.

        Returns:
            Tensors that `evaluate` needs. They are saved in the run's folder, unless there are none.
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

    def scores_while_training(self) -> list[str]:
        """Return the scores that hooks record in the journal during training."""
        return []
