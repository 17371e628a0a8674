"""Attention one query at a time, over the visible keys only."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def naive_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Compute softmax(q kᵀ / √E) v one query at a time, over the visible keys only."""
    batch, heads, queries, width = q.shape
    out = torch.zeros(batch, heads, queries, width, dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            for i in range(queries):
                visible = [j for j in range(k.shape[2]) if mask is None or bool(mask[i, j])]
                scores = [float(q[b, h, i] @ k[b, h, j]) / math.sqrt(width) for j in visible]
                weights = [math.exp(score - max(scores)) for score in scores]
                for weight, j in zip(weights, visible, strict=True):
                    out[b, h, i] += weight / sum(weights) * v[b, h, j]
    return out


def random_inputs(queries: int, keys: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 2, queries, 6), (2, 2, keys, 6), (2, 2, keys, 6)]
    q, k, v = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return q, k, v
