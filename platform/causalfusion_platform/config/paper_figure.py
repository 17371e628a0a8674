"""Figures of the paper that a table's runs are drawn into, beside its numbers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .section import Section


class ArStepFigure(Section):
    """The law of |κ| and the loss of each AR step (Figure 4b and c)."""

    kind: Literal["ar_steps"]


class TextImageFigure(Section):
    """Both directions of one model: samples of prompts, and captions of validation images (Figure 5)."""

    kind: Literal["text_image"]
    prompts: tuple[str, ...] = Field(min_length=1)
    """Prompts, a row of samples each."""
    samples: int = Field(ge=1)
    """Samples of each prompt, from the noises 0, 1, … of the row's seed."""
    images: int = Field(ge=1)
    """Images to describe, the first of `data.validation`."""
    beam: int = Field(1, ge=1)
    """Hypotheses of the beam search. 1: greedy decoding."""


PaperFigure = Annotated[ArStepFigure | TextImageFigure, Field(discriminator="kind")]
