"""Interface of the training loop to a task: the loss of one optimizer step, in parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class PartLoss:
    """Loss of one micro-batch. Tensors stay on the device."""

    weighted: Tensor
    """Scalar to minimise. Its mean over micro-batches and ranks is the loss of the global batch."""
    values: Mapping[str, Tensor]
    """Further means over the rows, detached: `mse` becomes the metric `train/mse`. The same names at every step."""


class StepCost(NamedTuple):
    """Cost of training on one row, forward and backward."""

    flops: float
    tokens: int


class TrainingStep(Protocol):
    """One optimizer step on this rank's rows, with its random draws."""

    @property
    def rows(self) -> int:
        """Number of rows of this rank."""

    @property
    def numbers(self) -> Mapping[str, float]:
        """Numbers of the step that are averaged over steps: `ar_steps` becomes the metric `train/ar_steps`."""

    def loss(self, engine: Any, rows: slice, device: torch.device) -> PartLoss:
        """Return the loss of some of the rows. `engine` is called as the model is."""

    @property
    def cost(self) -> Callable[[], StepCost]:
        """Function that returns the cost of one row. It outlives the step, so it must not hold the batch."""


class TrainingObjective(Protocol):
    """The loss of a task, bound to its model."""

    def step(self, batch: Any, number: int) -> TrainingStep:
        """Draw the random numbers of optimizer step `number`, counted from 0, for this rank's batch.

        All ranks call it together: an objective may sum over them.
        """
