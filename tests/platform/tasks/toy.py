"""A second task: a small network predicts the mean of each latent, from its pixels and the length of its key."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from causalfusion_platform.data.manifest import Manifest
from causalfusion_platform.data.read import LATENT, Columns
from causalfusion_platform.tasks import Task, TaskContext
from causalfusion_platform.tracking.tracker import AS_BARS, Tracker
from causalfusion_platform.train.loop import TrainLoop
from causalfusion_platform.train.objective import PartLoss, StepCost
from causalfusion_platform.train.optimizer import ParameterGroup

BODY = {"lr_scale": 0.25, "weight_decay": 0.5}
HEAD = {"lr_scale": 2.0, "weight_decay": 0.0}


@dataclass(frozen=True)
class Rows:
    """One worker's part of a global batch."""

    samples: range
    latents: Tensor
    """(B, channels, height, width)"""
    lengths: Tensor
    """(B,) characters of each row's key."""


class Network(nn.Module):
    """Two linear layers."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(inputs + 1, 16), nn.Linear(16, 1)

    def forward(self, latents: Tensor, lengths: Tensor) -> Tensor:
        """Return one prediction a row, (B,)."""
        inputs = torch.cat([latents.flatten(1), lengths[:, None] / 100], dim=1)
        out: Tensor = self.head(torch.tanh(self.body(inputs)))[:, 0]
        return out


@dataclass(frozen=True)
class Step:
    """One optimizer step."""

    batch: Rows
    numbers: Mapping[str, float]
    cost: Callable[[], StepCost]

    @property
    def rows(self) -> int:
        """Rows of this rank."""
        return len(self.batch.lengths)

    @property
    def totals(self) -> None:
        """No sums over ranks."""

    def part(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Return latents and lengths."""
        return self.batch.latents[rows], self.batch.lengths[rows]

    def loss(self, engine: Any, part: tuple[Tensor, Tensor], totals: Tensor | None) -> PartLoss:
        """Return the squared error, and the absolute one beside it."""
        del totals
        latents, lengths = part
        error = engine(latents, lengths) - latents.mean(dim=(1, 2, 3))
        return PartLoss(error.square().mean(), {"absolute_error": error.detach().abs().mean()})


class Regression:
    """The objective; `interrupt_at` breaks off at that step once, as a person would."""

    interrupt_at: int | None = None

    def step(self, batch: Rows, number: int) -> Step:
        """Return the step; nothing is drawn."""
        if number == Regression.interrupt_at:
            Regression.interrupt_at = None
            raise KeyboardInterrupt
        return Step(batch, {"longest_key": float(batch.lengths.max())}, lambda: StepCost(1000.0, 1))


class LatentMean(Task):
    """Everything that a run needs to know of this task."""

    fields = (LATENT, "key")

    @staticmethod
    def collate(columns: Columns, first_sample: int) -> Rows:
        """Make a batch of latents and the lengths of keys."""
        lengths = torch.tensor([float(len(str(key))) for key in columns["key"]])
        samples = range(first_sample, first_sample + len(lengths))
        return Rows(samples, torch.from_numpy(columns[LATENT]).float(), lengths)

    def build_model(self) -> Network:
        """Return the network."""
        sizes = self.experiment.model
        return Network(sizes.in_channels * sizes.input_size**2)

    def parameter_groups(self, model: nn.Module) -> list[ParameterGroup]:
        """Return two groups, each with a rate and a decay of its own."""
        assert isinstance(model, Network)
        return [
            ParameterGroup(tuple(model.body.parameters()), **BODY),
            ParameterGroup(tuple(model.head.parameters()), **HEAD),
        ]

    def objective(self, model: nn.Module) -> Regression:
        """Return the squared error."""
        del model
        return Regression()

    def end(self, loop: TrainLoop, context: TaskContext) -> dict[str, Tensor]:
        """Keep the averaged bias of the head. Longer work would give a sign of life with each of its parts."""
        context.control.mark("average of the bias", loop.state.images_seen)
        return {"bias": loop.averages.full_state()["head.bias"]}

    def evaluate(self, final: dict[str, Tensor], manifest: Manifest, tracker: Tracker) -> dict[str, Any]:
        """Record the bias."""
        bias = float(final["bias"])
        tracker.metrics({"eval/bias": bias}, AS_BARS)
        return {"bias": bias, "rows": manifest.rows, "weights": str(Path("weights"))}

    def scores(self) -> list[str]:
        """Trials could be ranked by the bias."""
        return ["bias"]
