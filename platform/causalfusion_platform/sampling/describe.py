"""Captions of latents, shared out over ranks or all in one process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from causalfusion import CaptionConfig, Captions, Model, caption
from causalfusion.sampling.caption import ImageDescriber
from causalfusion.text.tokenizer import Tokenizer
from causalfusion.weights import cast_copy


@dataclass(frozen=True)
class Description:
    """Texts of images."""

    texts: list[str]
    log_probabilities: list[float]
    """Sum over the tokens of each."""


def describe(
    model: Model | ImageDescriber,
    latents: Tensor,
    tokenizer: Tokenizer,
    config: CaptionConfig,
    *,
    beginning: str = "",
    seed: int = 0,
    indices: Sequence[int] | None = None,
    batch_size: int = 64,
    bf16: bool = False,
    alive: Callable[[], None] = lambda: None,
) -> Description:
    """Describe latents (B, channels, height, width). Text i is the same in any batch.

    Args:
        model: a model of text, usually with EMA weights.
        latents: in the model's scale.
        tokenizer: that of the model's training.
        config: how tokens are chosen.
        beginning: text that each caption begins with.
        seed: decides sampled tokens, with an image's index.
        indices: number of each image (default: 0…B−1).
        batch_size: images that go through the model at once, before the beams.
        bf16: True if the model decodes in bf16, weights included.
        alive: called after each batch.

    Raises:
        ValueError: the model has no text, or the beginning is too long.
    """
    numbers = range(len(latents)) if indices is None else indices
    given = tokenizer.encode(beginning)[1:-1] if beginning else []
    if bf16 and isinstance(model, nn.Module):
        model = cast_copy(model, torch.bfloat16)
    texts, totals = [], []
    for start in range(0, len(latents), batch_size):
        part = slice(start, start + batch_size)
        found: Captions = caption(
            model,
            latents[part],
            begin=tokenizer.begin,
            end=tokenizer.end,
            config=config,
            beginning=given,
            vocabulary=tokenizer.size,
            seed=seed,
            indices=list(numbers[part]),
        )
        texts += [tokenizer.decode(found[row]) for row in range(len(found))]
        totals += [float(total) for total in found.log_probabilities]
        alive()
    return Description(texts, totals)


def describe_together(
    model: Model,
    latents: Tensor,
    tokenizer: Tokenizer,
    config: CaptionConfig,
    *,
    seed: int,
    batch_size: int,
    bf16: bool,
    alive: Callable[[], None] = lambda: None,
) -> list[str]:
    """Describe latents on all ranks together. Every rank gets all texts."""
    world, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    mine = list(range(rank, len(latents), world))
    own = describe(
        model,
        latents[torch.tensor(mine, dtype=torch.int64)],
        tokenizer,
        config,
        seed=seed,
        indices=mine,
        batch_size=batch_size,
        bf16=bf16,
        alive=alive,
    )
    parts: list[list[str]] = [[]] * world
    torch.distributed.all_gather_object(parts, own.texts)
    return [parts[number % world][number // world] for number in range(len(latents))]
