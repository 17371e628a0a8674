"""Scaled dot-product attention, and the table of its forms. Device, dtype and length decide which one runs."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

AttentionForm = Literal["matmul", "split", "blocks", "flex"]
"""Forms of attention.

`matmul`: plain products. `split`: torch's fused kernel, for the context and for the noised copies of a training
sequence. `blocks`: the fused kernel for each AR step, or few of them, with the keys that they see. `flex`:
FlexAttention over the whole training sequence. Only training sequences have `blocks` and `flex`. Elsewhere the
fused kernel runs in their place.
"""

_NEVER = 1 << 62

# Lengths up to which `matmul` runs, from which on `blocks` runs, from which on `flex` runs. `split` runs between.
# On CPUs the fused kernel in bf16 takes 2 to 6 times as long as plain products up to 128 tokens. It takes as long
# at 256 and less beyond. In fp32 it is faster at every length (`make bench`).
# The lines of GPUs are predicted, not measured: with a mask, torch's kernel there is not flash attention.
_FORMS: dict[tuple[str, torch.dtype], tuple[int, int, int]] = {
    ("cpu", torch.bfloat16): (128, _NEVER, _NEVER),
    ("cpu", torch.float32): (0, 256, _NEVER),
    ("cuda", torch.bfloat16): (0, _NEVER, 128),
    ("cuda", torch.float16): (0, _NEVER, 128),
}


def attention_form(device: torch.device, dtype: torch.dtype, length: int) -> AttentionForm:
    """Choose the form of attention for queries on `device`, of `dtype`, against `length` keys."""
    matmul, blocks, flex = _FORMS.get((device.type, dtype), (0, _NEVER, _NEVER))
    if length <= matmul:
        return "matmul"
    if length >= flex:
        return "flex"
    return "blocks" if length >= blocks else "split"


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
    if attention_form(v.device, v.dtype, k.shape[-2]) == "matmul":
        return products(q, k, v, mask)
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def products(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Compute `attend` by plain products."""
    scores: Tensor = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    return softmax_of_visible(scores, mask).to(v.dtype) @ v


def softmax_of_visible(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Return the weights of the visible keys, for scores (…, Nq, Nk) and a mask that broadcasts against them."""
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(dim=-1)
