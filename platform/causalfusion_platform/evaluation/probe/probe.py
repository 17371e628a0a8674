"""Accuracy of probes of a model's layers on rows that no training sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from causalfusion import DiffusionConfig, Model, ModelConfig, build_model, draws
from causalfusion.representation import Condition

from ...data.chosen_rows import ChosenRows
from .features import averaged_tokens
from .linear import linear_predictions
from .nearest import nearest_predictions

Kind = Literal["linear", "knn"]
_PREDICT = {"linear": linear_predictions, "knn": nearest_predictions}


@dataclass(frozen=True)
class Accuracy:
    """Validation rows that a probe classifies correctly."""

    correct: int
    total: int

    @property
    def value(self) -> float:
        """Share of correct rows."""
        return self.correct / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval of the share by Wilson's score, for `total` independent draws."""
        from scipy.stats import binomtest  # its import takes half a second, and every worker imports this module

        found = binomtest(self.correct, self.total).proportion_ci(0.95, method="wilson")
        return float(found.low), float(found.high)


@dataclass(frozen=True)
class ProbeData:
    """Rows that classifiers are trained and measured on."""

    train: ChosenRows
    validation: ChosenRows
    seed: int
    """Seed of the noise."""


def probe_layers(
    model: Model,
    data: ProbeData,
    layers: Sequence[int],
    kinds: Sequence[Kind],
    *,
    t: int,
    condition: Condition = "none",
    diffusion: DiffusionConfig,
    alive: Callable[[], None] = lambda: None,
) -> Iterator[tuple[Kind, int, Accuracy]]:
    """Yield the accuracy of each kind of probe on each layer at one diffusion time.

    Features of all layers are in memory: 4 bytes × rows × layers × width.

    Args:
        model: the network, in evaluation mode. It is left as it is.
        data: the rows.
        layers: ascending, 0 for the embedding.
        kinds: classifiers.
        t: diffusion time of the latents, 0 for clean ones.
        condition: condition of a DiT.
        diffusion: the noise process.
        alive: called after each batch.

    Raises:
        NotFinite: some feature is NaN or infinite.
        UserError: a shard is damaged.
    """
    train, others = (
        averaged_tokens(
            model,
            rows,
            layers,
            t=t,
            condition=condition,
            diffusion=diffusion,
            seed=draws.stream_seed(data.seed, "probe noise", part),
            alive=alive,
        )
        for part, rows in (("training", data.train), ("validation", data.validation))
    )
    classes = len(data.train.manifest.class_names)
    for place, layer in enumerate(layers):
        for kind in kinds:
            predicted = _PREDICT[kind](train[place], data.train.labels, others[place], classes)
            correct = int((predicted == data.validation.labels).sum())
            yield kind, layer, Accuracy(correct, len(predicted))


def untrained(config: ModelConfig, seed: int) -> Model:
    """Return the model of a run of `seed` before its first step. Torch's own generator is left as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(draws.stream_seed(seed, "initial weights"))  # no other device's
        return build_model(config).eval()
