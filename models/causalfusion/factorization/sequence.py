"""Layout of a training sequence: the segment and the step of each token.

A sequence is [class | text before | clean image | text after | time | padding | noised copies …].
Most parts are optional. Noised copies come last: no earlier token sees them, and no copy sees another.
Attention leaves these pairs out (`causalfusion.attention.plan`).

A step is a place in the order of generation:

* class tokens are step 0,
* each text token before the image is a step of its own,
* the clean and noised tokens of one AR step share a step,
* each text token after the image is a step of its own, later than the image.

`causalfusion.attention.mask` derives the mask from segments and steps alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from .steps import step_of_token


class Segment(IntEnum):
    """Kinds of tokens. Every value from NOISED on is one noised copy of the image."""

    PADDING = -1
    CLASS = 0
    TEXT = 1
    CLEAN = 2
    TIME = 3
    NOISED = 4


@dataclass(frozen=True)
class Layout:
    """Segment and step of every token of a sequence of N tokens, and the places of its parts."""

    segments: Tensor
    """(N,) int64: a `Segment`, or `Segment.NOISED + c` for noised copy c."""
    steps: Tensor
    """(N,) int64: place in the order of generation."""
    noised: slice
    """Place of the noised copies."""
    before: slice
    """Place of the text before the image."""
    after: slice
    """Place of the text after the image."""

    def __len__(self) -> int:
        return len(self.segments)


def padded_length(length: int, multiple: int) -> int:
    """Return the length of a sequence that is padded to a multiple."""
    return length + -length % multiple


def lay_out(
    sizes: list[int],
    *,
    class_tokens: int,
    text_before: int = 0,
    text_after: int = 0,
    copies: int = 1,
    time_token: bool = False,
    multiple: int = 1,
) -> Layout:
    """Lay out the training sequence of one AR split.

    The clean tokens of the last AR step are left out unless text follows the image: nothing would attend to them.

    Args:
        sizes: |κ_1| … |κ_S|.
        class_tokens: class tokens at the start.
        text_before: text tokens that the image is conditioned on (text-to-image). The longest text of a batch
            decides: `attention_mask` hides the ends of shorter ones.
        text_after: text tokens that are conditioned on the image (captioning).
        copies: noised copies of the image, each with diffusion times of its own (Table 7).
        time_token: add a token with the diffusion time, which the noised tokens see (Table 1).
        multiple: pad the sequence to a multiple of this length, so that few lengths occur. One AR step without text
            has one length, and is not padded.
    """
    first_image_step = 1 + text_before
    image = first_image_step + step_of_token(sizes)
    num_clean = len(image) if text_after else len(image) - sizes[-1]
    after = first_image_step + len(sizes) + torch.arange(text_after)
    parts: list[tuple[int, Tensor]] = [
        (Segment.CLASS, torch.zeros(class_tokens, dtype=torch.int64)),
        (Segment.TEXT, 1 + torch.arange(text_before)),
        (Segment.CLEAN, image[:num_clean]),
        (Segment.TEXT, after),
        (Segment.TIME, torch.full((int(time_token),), first_image_step)),
    ]
    start = sum(len(steps) for _, steps in parts)
    first_after = class_tokens + text_before + num_clean
    length = start + copies * len(image)
    only = len(sizes) == 1 and not text_before + text_after
    padding = 0 if only else padded_length(length, multiple) - length
    parts.append((Segment.PADDING, torch.full((padding,), -1)))
    parts += [(Segment.NOISED + copy, image) for copy in range(copies)]
    return Layout(
        segments=torch.cat([torch.full_like(steps, segment) for segment, steps in parts]),
        steps=torch.cat([steps for _, steps in parts]),
        noised=slice(start + padding, start + padding + copies * len(image)),
        before=slice(class_tokens, class_tokens + text_before),
        after=slice(first_after, first_after + text_after),
    )
