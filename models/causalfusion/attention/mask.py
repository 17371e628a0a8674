"""The generalized causal mask (Appendix A, Figure 6, Algorithm 1), as a function of segment and step."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ..factorization.sequence import Layout, Segment

# Plain numbers: torch.compile traces `visible` inside FlexAttention, and takes no enumeration there.
_CLASS, _CLEAN, _TIME, _NOISED = (
    int(segment) for segment in (Segment.CLASS, Segment.CLEAN, Segment.TIME, Segment.NOISED)
)


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
    is_context = (key_segment >= _CLASS) & (key_segment <= _CLEAN)
    time = (key_segment == _TIME) & (query_segment >= _NOISED)
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
    places = torch.stack(places_of(layout, lengths), dim=-2).to(device)
    return visible_between(places, places)


def visible_between(queries: Tensor, keys: Tensor) -> Tensor:
    """Return which of n queries see which of N keys: bool, (n, N), or (B, n, N) if samples differ.

    Args:
        queries: their segments and steps, (2, n) or (B, 2, n).
        keys: those of the keys, (2, N) or (B, 2, N).
    """
    segments, steps = queries[..., :, None].unbind(-3)
    return visible(segments, steps, *keys[..., None, :].unbind(-3))


def places_of(layout: Layout, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the segments and the steps of a layout, (N,) each, or (B, N) with `lengths` as in `attention_mask`."""
    segments, steps = layout.segments, layout.steps
    if lengths is None:
        return segments, steps
    place = torch.arange(layout.before.stop - layout.before.start)
    absent = place >= lengths.to(segments.device)[:, None]
    absent = functional.pad(absent, (layout.before.start, len(layout) - layout.before.stop))
    return segments.masked_fill(absent, Segment.PADDING), steps.masked_fill(absent, -1)
