"""Latents as sequences of square patches, and back.

Shapes: B samples, L patches in raster order, P = patch_size² · channels numbers in a patch.
Within a patch the order is rows, columns, channels.
"""

from __future__ import annotations

import copy
from typing import Self

import torch
from einops import rearrange
from torch import Tensor, nn

from .config import TransformerSizes
from .embed import sinusoids_2d


def patchify(latents: Tensor, patch_size: int) -> Tensor:
    """Cut latents (B, channels, height, width) into patches in raster order: (B, L, P).

    Args:
        latents: height and width are multiples of `patch_size`.
        patch_size: side of a patch, in latent pixels.
    """
    return rearrange(latents, "b c (y p) (x q) -> b (y x) (p q c)", p=patch_size, q=patch_size)


def unpatchify(patches_BLP: Tensor, patch_size: int, rows: int, columns: int) -> Tensor:
    """Undo `patchify`: (B, L, P) → (B, channels, height, width).

    Args:
        patches_BLP: patches in raster order.
        patch_size: side of a patch, in latent pixels.
        rows: patches along the height.
        columns: patches along the width, L = rows · columns.
    """
    return rearrange(
        patches_BLP, "b (y x) (p q c) -> b c (y p) (x q)", p=patch_size, q=patch_size, y=rows, x=columns
    )


class PatchModel(nn.Module):
    """Base of models over patches: conversion between latents and patches, and the grid of positions."""

    config: TransformerSizes
    patch_embed: nn.Linear
    positions: Tensor
    """(rows · columns, D): learned, or sinusoids."""
    grid: tuple[int, int]
    """Rows and columns of patches."""

    @property
    def dtype(self) -> torch.dtype:
        """Type of the parameters."""
        return self.patch_embed.weight.dtype

    @property
    def latent_dtype(self) -> torch.dtype:
        """Type of generated latents: float64 for a float64 model, float32 for all others."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self.patch_embed.weight.device

    def patchify(self, latents: Tensor) -> Tensor:
        """Cut latents (B, channels, height, width) into patches in raster order: (B, L, P)."""
        return patchify(latents, self.config.patch_size)

    def unpatchify(self, patches_BLP: Tensor) -> Tensor:
        """Undo `patchify`: (B, L, P) → (B, channels, height, width)."""
        return unpatchify(patches_BLP, self.config.patch_size, *self.grid)

    def on_grid(self, rows: int, columns: int) -> Self:
        """Return the same model with shared weights on another grid of rows × columns patches.

        Raises:
            ValueError: the positions are learned, and the grid differs from that of training.
        """
        if (rows, columns) == self.grid:
            return self
        if isinstance(self.positions, nn.Parameter):
            raise ValueError(
                f"learned positions end at the {self.grid[0]}×{self.grid[1]} grid of training; only sinusoids "
                f"reach a {rows}×{columns} grid"
            )
        other = copy.copy(self)  # shares every parameter and submodule
        other._buffers = dict(self._buffers)
        other.positions = sinusoids_2d(self.config.hidden_size, rows, columns).to(self.positions)
        other.grid = (rows, columns)
        return other
