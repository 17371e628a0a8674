"""Batch and loss of one step on text and images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from causalfusion import (
    CausalFusion,
    CausalFusionConfig,
    Draws,
    TextImageObjective,
    Texts,
    draw,
    text_last,
)
from causalfusion.factorization.sequence import lay_out
from causalfusion.flops import forward_flops
from causalfusion.text_objective import Kind

from ...config.schema import Experiment
from ...data.caption_tokens import CUT, LENGTHS, TOKENS
from ...data.read import LATENT, Columns
from ...train.objective import PartLoss, StepCost
from ..captions import count_targets, targets_of
from ..generation import DrawnStep, in_weights_type


@dataclass(frozen=True)
class TextImageBatch:
    """Part of a global batch for one worker: images and one caption of each."""

    samples: range
    """Positions in the stream of rows (images seen before each one), which seed the samples' draws."""
    latents: Tensor
    """(B, channels, height, width) float32"""
    tokens: Tensor
    """(B, T) int64"""
    lengths: Tensor
    """(B,) int64"""
    cut: Tensor
    """(B,) float32: 1 for a caption that is longer than the model takes."""

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.latents)


def to_batch(columns: Columns, first_sample: int) -> TextImageBatch:
    """Make one worker's batch of its rows."""
    return TextImageBatch(
        samples=range(first_sample, first_sample + len(columns["row_id"])),
        latents=torch.from_numpy(columns[LATENT].astype(np.float32)),
        tokens=torch.from_numpy(columns[TOKENS].astype(np.int64)),
        lengths=torch.from_numpy(columns[LENGTHS].astype(np.int64)),
        cut=torch.from_numpy(columns[CUT].astype(np.float32)),
    )


def noise_batch(model: CausalFusionConfig, rows: int) -> TextImageBatch:
    """Return a batch of noise and of texts of the largest length."""
    assert model.text is not None
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(rows, model.in_channels, model.input_size, model.input_size, generator=generator)
    tokens = torch.randint(model.text.vocabulary, (rows, model.text.max_tokens), generator=generator)
    return TextImageBatch(
        samples=range(rows),
        latents=latents,
        tokens=tokens,
        lengths=torch.full((rows,), model.text.max_tokens),
        cut=torch.zeros(rows),
    )


class TextImageTraining:
    """The objective of text and images, bound to a model."""

    def __init__(self, model: CausalFusion, experiment: Experiment) -> None:
        self.experiment = experiment
        self.objective = TextImageObjective(model, experiment.objective, experiment.diffusion)

    def step(self, batch: TextImageBatch, number: int) -> TextImageStep:
        """Draw the random numbers of a step."""
        experiment, objective = self.experiment, self.objective
        drawn = draw(
            objective.model.config,
            experiment.objective,
            experiment.diffusion,
            seed=experiment.seed,
            step=number,
            samples=batch.samples,
        )
        texts = Texts(batch.tokens, batch.lengths, text_last(batch.samples, objective.text.share))
        return TextImageStep(self, batch, texts, drawn)


@dataclass(frozen=True)
class LatentsAndTexts:
    """Inputs of one micro-batch."""

    latents: Tensor
    """(B, channels, height, width)"""
    kinds: list[Kind]
    cut: Tensor
    """Share of the captions that are longer than the model takes."""


@dataclass(frozen=True)
class TextImageStep(DrawnStep):
    """One optimizer step on a batch of latents and captions."""

    bound: TextImageTraining
    batch: TextImageBatch
    texts: Texts
    drawn: Draws

    @property
    def totals(self) -> Tensor:
        """Target tokens and rows of this rank."""
        return count_targets(self.texts.targets, len(self.batch))

    def part(self, rows: slice) -> LatentsAndTexts:
        """Return latents, texts and draws of some rows."""
        kinds = self.bound.objective.prepare(self.texts[rows], self.drawn.part(rows))
        return LatentsAndTexts(self.batch.latents[rows], kinds, self.batch.cut[rows].mean())

    def loss(self, engine: Any, part: LatentsAndTexts, totals: Tensor | None) -> PartLoss:
        """Return the loss of some rows, the error of their images and the entropy of their texts."""
        targets = targets_of(totals, len(part.latents))
        loss = self.bound.objective.loss(in_weights_type(engine), part.latents, part.kinds, targets)
        return PartLoss(loss.weighted, {"mse": loss.mse, "text_loss": loss.text, "captions_cut": part.cut})

    @property
    def cost(self) -> Callable[[], StepCost]:
        """Function that returns FLOPs and tokens of one image, exact for the AR split of this step."""
        lengths = self.texts.lengths.double().mean()
        return partial(cost_of, self.bound.experiment, self.drawn.sizes, round(float(lengths)))


def cost_of(experiment: Experiment, sizes: list[int], text: int) -> StepCost:
    """Return FLOPs and tokens of one image, averaged over both kinds, with texts of `text` tokens."""
    model, objective = cast(CausalFusionConfig, experiment.model), experiment.objective
    assert objective.text is not None
    copies, share = objective.time_copies, objective.text.share
    flops = [
        forward_flops(
            model,
            sizes,
            text_before=before,
            text_after=after,
            time_copies=copies,
            attention="visible",
            skip_unread=True,
        )
        for before, after in ((text, 0), (0, text))
    ]
    first, last = _lengths(model, sizes, text, copies)
    return StepCost(
        flops=3 * ((1 - share) * flops[0] + share * flops[1]), tokens=round((1 - share) * first + share * last)
    )


def _lengths(model: CausalFusionConfig, sizes: list[int], text: int, copies: int) -> tuple[int, int]:
    """Return the tokens of the two sequences: text before the image, and text behind it."""
    time_token = model.time_conditioning == "token"
    first, last = (
        len(
            lay_out(
                sizes,
                class_tokens=0,
                text_before=before,
                text_after=after,
                copies=copies,
                time_token=time_token,
            )
        )
        for before, after in ((text, 0), (0, text))
    )
    # The text of Transfusion reads the noised tokens themselves.
    return first, last - model.num_tokens if model.architecture == "transfusion" else last
