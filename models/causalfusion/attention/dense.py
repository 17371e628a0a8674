"""Scaled dot-product attention. Device, dtype and length decide which implementation runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

AttentionForm = Literal["sdpa", "matmul"]

# On CPUs the fused kernel in bf16 takes 2 to 6 times as long as plain products up to 128 tokens. It takes as long
# at 256 and less beyond. In fp32 it is faster at every length (`make bench`).
_CPU_MATMUL_MAX_LENGTH = {torch.bfloat16: 128}


def attention_form(device: torch.device, dtype: torch.dtype, length: int) -> AttentionForm:
    """Choose the form of attention for queries on `device`, of `dtype`, against `length` keys."""
    if device.type == "cpu" and length <= _CPU_MATMUL_MAX_LENGTH.get(dtype, 0):
        return "matmul"
    return "sdpa"


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Scaled dot-product attention.

    Args:
        q: queries, (B, H, Nq, E).
        k: keys, (B, H, Nk, E).
        v: values, (B, H, Nk, E).
        mask: (Nq, Nk) or broadcastable to (B, H, Nq, Nk), bool, True = visible. None: all visible. Every row
            must have a visible key.

    Returns:
        (B, H, Nq, E).
    """
    return attend_in_form(attention_form(v.device, v.dtype, k.shape[-2]), q, k, v, mask)


def attend_in_form(form: AttentionForm, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Compute `attend` in the given form."""
    if form == "sdpa":
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    scores: Tensor = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights: Tensor = scores.softmax(dim=-1).to(v.dtype)
    return weights @ v


@dataclass(frozen=True)
class SplitMask:
    """The mask of [context | noised copies], without the pairs that are never visible.

    Context sees no noised token, and no copy sees another. Of (C + k·L)² pairs, C² + k·L·(C + L) are left.
    """

    context: Tensor | None
    """(C, C), or (B, 1, C, C) if samples differ: bool, True = visible. None: all visible."""
    noised: Tensor | None
    """(L, C + L), or (B, 1, L, C + L): context and own tokens, the same for every copy. None: all visible."""
    lengths: tuple[int, int]
    """C and L, the tokens of the context and of one copy."""
    copies: int
    """k, the noised copies."""

    @classmethod
    def cut(cls, mask: Tensor, num_tokens: int, copies: int) -> SplitMask:
        """Cut the whole mask of a sequence that ends in `copies` copies of `num_tokens` tokens.

        Args:
            mask: (N, N), or (B, N, N) if samples differ. No context token sees a noised one.
            num_tokens: L.
            copies: k.
        """
        if mask.ndim == 3:
            mask = mask[:, None]  # the same for all heads
        end = mask.shape[-1] - copies * num_tokens
        seen = mask[..., end : end + num_tokens, : end + num_tokens]
        return cls(_if_needed(mask[..., :end, :end]), _if_needed(seen), (end, num_tokens), copies)


def _if_needed(mask: Tensor) -> Tensor | None:
    """Return None for a CPU mask that hides nothing. On a GPU the check would make the host wait."""
    return None if mask.device.type == "cpu" and bool(mask.all()) else mask.contiguous()


def attend_split(q: Tensor, k: Tensor, v: Tensor, mask: SplitMask) -> Tensor:
    """Compute `attend` for a training sequence.

    Args:
        q: queries (B, H, n, E) of the last n tokens of the sequence, all noised ones among them.
        k: keys (B, H, N, E) of the whole sequence.
        v: values (B, H, N, E).
        mask: the mask of the sequence.
    """
    (context, length), copies = mask.lengths, mask.copies
    asked = q.shape[2] - copies * length  # queries of the context: its last ones
    if asked:
        q_context, q = torch.split(q, [asked, copies * length], dim=2)
        k_context, v_context = k[:, :, :context], v[:, :, :context]
    noised = mask.noised
    if copies > 1:  # every copy is a sample of its own, with the same context before it
        q = rearrange(q, "b h (k n) e -> (b k) h n e", k=copies)
        k, v = (_with_context(x, context, copies) for x in (k, v))
        if noised is not None and noised.ndim == 4:
            noised = noised.repeat_interleave(copies, dim=0)
    out = rearrange(attend(q, k, v, noised), "(b k) h n e -> b h (k n) e", k=copies)
    if not asked:
        return out
    seen = None if mask.context is None else mask.context[..., context - asked :, :]
    return torch.cat([attend(q_context, k_context, v_context, seen), out], dim=2)


def _with_context(x_BHNE: Tensor, context: int, copies: int) -> Tensor:
    """Put each noised copy behind a copy of the context: (B · k, H, C + L, E)."""
    shared, own = torch.split(x_BHNE, [context, x_BHNE.shape[2] - context], dim=2)
    own = rearrange(own, "b h (k n) e -> (b k) h n e", k=copies)
    return torch.cat([shared.repeat_interleave(copies, dim=0), own], dim=2)
