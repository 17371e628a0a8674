"""Interface of the training loop to a task: the loss of one optimizer step, in parts.

A step is made on the host, perhaps ahead of time, and all its inputs go to the device in one copy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from causalfusion.slab import Slab


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
    """One optimizer step on this rank's rows, with its random draws. It holds no tensor of a device."""

    @property
    def rows(self) -> int:
        """Number of rows of this rank."""

    @property
    def numbers(self) -> Mapping[str, float]:
        """Numbers of the step that are averaged over steps: `ar_steps` becomes the metric `train/ar_steps`."""

    @property
    def totals(self) -> Tensor | None:
        """Numbers of this rank, fp64, to be summed over all ranks before the first loss. None: there are none."""

    def part(self, rows: slice) -> Any:
        """Return the inputs of `loss` for some of the rows: dataclasses, lists or tuples of tensors of the host."""

    def loss(self, engine: Any, part: Any, totals: Tensor | None) -> PartLoss:
        """Return the loss of some of the rows. The host must not wait for the device here.

        Args:
            engine: is called as the model is.
            part: result of `part`, on the device.
            totals: the sums of `totals` over all ranks, on the device.
        """

    @property
    def cost(self) -> Callable[[], StepCost]:
        """Function that returns the cost of one row. It outlives the step, so it must not hold the batch."""


class TrainingObjective(Protocol):
    """The loss of a task, bound to its model."""

    def step(self, batch: Any, number: int) -> TrainingStep:
        """Draw the random numbers of optimizer step `number`, counted from 0, for this rank's batch.

        This is work of the host alone, which a thread may do while the device computes the step before. Ranks do
        not communicate in it.
        """


@dataclass(frozen=True)
class _Inputs:
    parts: Sequence[Any]
    totals: Tensor | None


class ReadyStep:
    """An optimizer step whose inputs wait in one buffer for their copy to the device.

    Args:
        step: the step.
        rows: rows of one micro-batch.
        device: the device that computes.
    """

    def __init__(self, step: TrainingStep, rows: int, device: torch.device) -> None:
        self.step = step
        parts = [step.part(slice(first, first + rows)) for first in range(0, step.rows, rows)]
        self._slab = Slab(_Inputs(parts, step.totals), device)

    def inputs(self) -> tuple[Sequence[Any], Tensor | None]:
        """Return the inputs of each micro-batch, and the totals over all ranks, on the device.

        All ranks call it together.
        """
        inputs = self._slab.on_device()
        totals = inputs.totals
        if totals is not None and torch.distributed.is_initialized():
            totals = totals.clone()
            torch.distributed.all_reduce(totals)
        return inputs.parts, totals
