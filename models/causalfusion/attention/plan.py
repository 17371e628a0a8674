"""Plan of the attention over a training sequence, made on the host once a step."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..factorization.sequence import Layout, Segment
from . import dense
from .blocks import BlockedMask
from .flex import FlexMask
from .mask import places_of, visible_between
from .split import SplitMask


@dataclass(frozen=True)
class AttentionPlan:
    """Which tokens of a training sequence see which, without a mask of N × N tokens.

    The sequence is C context tokens, then k noised copies of L tokens. A noised token sees the clean tokens of the
    steps before its own, and the tokens of its own step and copy. Two small vectors say that for every token. The
    host knows the sizes and whether anything is hidden at all, so that no device is asked.
    """

    places: Tensor
    """(2, N) int32: segment and step of each token. (B, 2, N) if the texts of samples differ in length."""
    num_context: int
    """C, padding included."""
    num_tokens: int
    """L. 0 without noised copies."""
    copies: int
    """k."""
    hides_context: bool
    """Whether some context token does not see another. False in one AR step without text and time token."""
    hides_from_noised: bool
    """Whether a noised token does not see all of its context and its copy. False in one AR step without padding."""

    @classmethod
    def of(cls, layout: Layout, lengths: Tensor | None = None) -> AttentionPlan:
        """Plan the attention over a layout, on the host.

        Args:
            layout: the sequence.
            lengths: (B,) text tokens before the image of each sample, on the host. The others are padding. 0: no
                text at all. None: all have as many as the layout.
        """
        if lengths is not None and bool((lengths == layout.before.stop - layout.before.start).all()):
            lengths = None
        segments, steps = places_of(layout, lengths)
        context = layout.noised.start if layout.noised.start < layout.noised.stop else len(layout)
        copies = int(layout.segments[-1]) - Segment.NOISED + 1 if context < len(layout) else 0
        tokens = (len(layout) - context) // copies if copies else 0
        head, tail = (slice(None, context), slice(context, context + tokens))
        return cls(
            places=torch.stack([segments, steps], dim=-2).to(torch.int32),
            num_context=context,
            num_tokens=tokens,
            copies=copies,
            hides_context=context > 0 and _differ(segments[..., head], steps[..., head]),
            hides_from_noised=copies > 0 and _hides(segments[..., head], steps[..., head], steps[..., tail]),
        )

    def __len__(self) -> int:
        return self.num_context + self.copies * self.num_tokens

    def to(self, device: torch.device | str) -> AttentionPlan:
        """Return the plan with its vectors on a device. From pinned memory the copy does not wait."""
        return replace(self, places=self.places.to(device, non_blocking=True))

    def mask(self, device: torch.device, dtype: torch.dtype, asked: int) -> SplitMask | BlockedMask | FlexMask:
        """Return the mask in the form that is fastest.

        Args:
            device: the device that computes.
            dtype: type of the products.
            asked: tokens at the end of the sequence that are read of the last block.
        """
        form = dense.attention_form(device, dtype, len(self))
        if form == "flex" and (self.hides_context or self.hides_from_noised):
            return FlexMask.of(self.to(device).places, asked)
        split = self.split(device)
        if form == "blocks" and self.places.ndim == 2 and (self.hides_from_noised or self.copies > 1):
            return BlockedMask.of(split, dtype) or split
        return split

    def split(self, device: torch.device | str = "cpu") -> SplitMask:
        """Return the two parts of the mask that can hide anything."""
        context, noised = self.num_context, slice(self.num_context, self.num_context + self.num_tokens)
        before = slice(None, context)
        plan = self.to(device) if self.hides_context or self.hides_from_noised else self
        return SplitMask(
            context=plan._between(before, before) if self.hides_context else None,
            noised=plan._between(noised, slice(None, noised.stop)) if self.hides_from_noised else None,
            num_context=context,
            num_tokens=self.num_tokens,
            copies=self.copies,
        )

    def _between(self, queries: slice, keys: slice) -> Tensor:
        """Return which queries see which keys: (queries, keys), or (B, 1, queries, keys) if samples differ."""
        seen = visible_between(self.places[..., queries], self.places[..., keys])
        return seen if seen.ndim == 2 else seen[:, None]


def _differ(segments: Tensor, steps: Tensor) -> bool:
    """Return whether context tokens differ. Of two that do, one does not see the other."""
    first = segments[..., :1], steps[..., :1]
    return not bool(((segments == first[0]) & (steps == first[1])).all())


def _hides(segments: Tensor, steps: Tensor, noised_steps: Tensor) -> bool:
    """Return whether some noised token of a copy sees less than the context and its whole copy."""
    first = noised_steps.amin()
    context = (segments >= Segment.CLASS) & (segments <= Segment.CLEAN) & (steps < first)
    shown = context | (segments == Segment.TIME)
    return not bool(shown.all()) or bool((noised_steps != first).any())
