"""Attention goes through one function, which picks its form by device, dtype and length."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

AttentionForm = Literal["sdpa", "matmul"]

# On CPUs the fused kernel is slow in bf16 at short lengths: 2 to 6 times the plain products up to 128 tokens, as
# slow at 256, faster beyond; in fp32 it is the faster one at every length (`make bench`).
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
        mask: (Nq, Nk) or broadcastable to (B, H, Nq, Nk), bool, True = visible; None: all visible. Every row
            must have a visible key.

    Returns:
        (B, H, Nq, E).
    """
    return attend_in_form(attention_form(v.device, v.dtype, k.shape[-2]), q, k, v, mask)


def attend_in_form(form: AttentionForm, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Do what `attend` does, in the form that is named."""
    if form == "sdpa":
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    scores: Tensor = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights: Tensor = scores.softmax(dim=-1).to(v.dtype)
    return weights @ v
