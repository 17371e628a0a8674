"""What the tests of weights share: checkpoints in the layout of the authors' code, written by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

State = dict[str, Tensor]


@pytest.fixture
def release_state() -> Callable[..., State]:
    """Return a function that makes a random model's state dict: 16 tokens of 8 numbers, 2 blocks, 3 classes."""

    def make(
        *,
        width: int = 16,
        heads: int = 2,
        depth: int = 2,
        hidden: int = 64,
        classes: int = 3,
        class_tokens: int = 2,
        tokens: int = 16,
        numbers: int = 8,
        seed: int = 0,
    ) -> State:
        shapes: dict[str, tuple[int, ...]] = {
            "pos_embed": (1, tokens, width),
            "cond_pos_embed": (1, class_tokens, width),
            "x_proj.weight": (width, numbers),
            "x_proj.bias": (width,),
            "t_embedder.mlp.0.weight": (width, 256),
            "t_embedder.mlp.0.bias": (width,),
            "t_embedder.mlp.2.weight": (width, width),
            "t_embedder.mlp.2.bias": (width,),
            "y_embedder.embedding_table.weight": (classes + 1, class_tokens * width),
            "final_layer.0.weight": (width,),
            "final_layer.0.bias": (width,),
            "final_layer.1.weight": (numbers, width),
            "final_layer.1.bias": (numbers,),
        }
        block: dict[str, tuple[int, ...]] = {
            "norm1.weight": (width,),
            "norm1.bias": (width,),
            "attn.qkv.weight": (3 * width, width),
            "attn.proj.weight": (width, width),
            "attn.proj.bias": (width,),
            "attn.q_norm.weight": (width // heads,),
            "attn.q_norm.bias": (width // heads,),
            "attn.k_norm.weight": (width // heads,),
            "attn.k_norm.bias": (width // heads,),
            "norm2.weight": (width,),
            "norm2.bias": (width,),
            "mlp.fc1.weight": (hidden, width),
            "mlp.fc1.bias": (hidden,),
            "mlp.fc2.weight": (width, hidden),
            "mlp.fc2.bias": (width,),
        }
        for layer in range(depth):
            shapes |= {f"blocks.{layer}.{name}": shape for name, shape in block.items()}
        generator = torch.Generator().manual_seed(seed)
        return {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}

    return make


@pytest.fixture
def release_sinusoids() -> Callable[[int, int], Tensor]:
    """Return a function of a grid's side and a width: the release's first positions, (1, side², width).

    Column, then row; of each, sines, then cosines.
    """

    def make(side: int, width: int) -> Tensor:
        frequencies = [1 / 10000 ** (k / (width // 4)) for k in range(width // 4)]
        rows = [
            [wave(place * f) for place in (column, row) for wave in (math.sin, math.cos) for f in frequencies]
            for row in range(side)
            for column in range(side)
        ]
        return torch.tensor(rows, dtype=torch.float64).float()[None]

    return make
