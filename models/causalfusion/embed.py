"""Embeddings: 2-D positions, diffusion time, class tokens.

Shapes: B samples, L image tokens, C class tokens, D width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def sinusoids_2d(width: int, rows: int, columns: int) -> Tensor:
    """Return fixed 2-D sinusoidal position embeddings in raster order: (rows · columns, D), float32.

    The first half of the width encodes the column, the second half the row. Each half of width D' has sines, then
    cosines, of frequencies 10000^(−2i/D'), as in MAE and DiT.
    """
    frequencies = 10000 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(max(rows, columns), dtype=torch.float64)[:, None] * frequencies
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)
    across = axis[None, :columns, :].expand(rows, -1, -1)
    down = axis[:rows, None, :].expand(-1, columns, -1)
    return torch.cat([across, down], dim=-1).reshape(rows * columns, width).float()


class TimeEmbedding(nn.Module):
    """Embedding of diffusion times: 256 sinusoids (cosines first), then a two-layer SiLU MLP."""

    def __init__(self, width: int, frequencies: int = 256) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.mlp = nn.Sequential(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """Map times (...,), in units of the training schedule's steps, to (..., D)."""
        half = self.frequencies // 2
        steps = torch.arange(half, dtype=torch.float32, device=t.device)
        angles = t[..., None].float() * torch.exp(-math.log(10000) * steps / half)
        features = torch.cat([angles.cos(), angles.sin()], dim=-1)
        embedded: Tensor = self.mlp(features.to(next(self.mlp.parameters()).dtype))
        return embedded


class ClassTokens(nn.Module):
    """Class tokens: n learned tokens per class, repeated r times, each with a learned position (Table 8)."""

    def __init__(self, num_classes: int, width: int, tokens: int, repeat: int) -> None:
        super().__init__()
        self.tokens, self.repeat = tokens, repeat
        self.table = nn.Embedding(num_classes + 1, tokens * width)  # the last row: the null class
        self.positions = nn.Parameter(torch.empty(tokens * repeat, width))

    def forward(self, labels: Tensor) -> Tensor:
        """Map labels (B,) to class tokens (B, C, D), C = n · r."""
        tokens = self.table(labels).unflatten(-1, (self.tokens, -1))
        return tokens.repeat(1, self.repeat, 1) + self.positions  # type: ignore[no-any-return]
