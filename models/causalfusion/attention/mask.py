"""The generalized causal mask (Appendix A, Figure 6, Algorithm 1), as a function of segment and step."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ..factorization.sequence import Layout, Segment


def visible(query_segment: Tensor, query_step: Tensor, key_segment: Tensor, key_step: Tensor) -> Tensor:
    """Return True where a query token sees a key token. The arguments broadcast against each other.

    * Every token sees the class, text and clean tokens of earlier steps. A noised token of step s thus sees the
      clean tokens of the steps before s, not those of its own step.
    * Tokens of one segment and one step see each other. Noised copies are separate segments, and each text token
      and the time token is alone in its step.
    * Noised tokens see the time token.

    No row is fully masked. Only noised tokens of the same copy see a noised token, and only padding sees padding.
    """
    together = (query_segment == key_segment) & (query_step == key_step)
    is_context = (key_segment >= Segment.CLASS) & (key_segment <= Segment.CLEAN)
    time = (key_segment == Segment.TIME) & (query_segment >= Segment.NOISED)
    return together | (is_context & (key_step < query_step)) | time


def attention_mask(layout: Layout, device: torch.device | str = "cpu", lengths: Tensor | None = None) -> Tensor:
    """Return the mask of a layout: bool, True = visible.

    Algorithm 1 as printed leaves fully masked rows when ctx_len = x_len. With ctx_len at the start of the last
    step it gives this mask.

    Args:
        layout: the sequence.
        device: device of the mask.
        lengths: (B,) text tokens before the image of each sample. The others are padding. 0: no text at all.

    Returns:
        (N, N), the same for every sample, or (B, N, N) with `lengths`.
    """
    segments, steps = layout.segments.to(device), layout.steps.to(device)
    if lengths is not None:
        place = torch.arange(layout.before.stop - layout.before.start, device=device)
        absent = functional.pad(
            place >= lengths.to(device)[:, None], (layout.before.start, len(layout) - layout.before.stop)
        )
        segments, steps = segments.masked_fill(absent, Segment.PADDING), steps.masked_fill(absent, -1)
    return visible(segments[..., :, None], steps[..., :, None], segments[..., None, :], steps[..., None, :])
