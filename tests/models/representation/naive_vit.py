"""A plain ViT of a trained model's weights, in numpy float64: one image, head, query and token at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from causalfusion import DiTConfig, Model

Array = npt.NDArray[np.float64]


def sigmoid_linear(x: Array) -> Array:
    silu: Array = x / (1 + np.exp(-x))
    return silu


class NaiveViT:
    """Tokens of every layer of a CausalFusion or a DiT."""

    def __init__(self, model: Model) -> None:
        self.model, self.config = model, model.config
        self.weights = {name: value.detach().double().numpy() for name, value in model.state_dict().items()}

    def linear(self, x: Array, name: str) -> Array:
        out: Array = self.weights[f"{name}.weight"] @ x + self.weights.get(f"{name}.bias", 0.0)
        return out

    def norm(self, x: Array, name: str) -> Array:
        standard = (x - x.mean()) / math.sqrt(x.var() + 1e-5)
        out: Array = standard * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]
        return out

    def time(self, t: int) -> Array:
        with torch.no_grad():
            embedded: Array = self.model.time_embed(torch.tensor(t)).double().numpy()
        return embedded

    def position(self, row: int, column: int) -> Array:
        if "positions" in self.weights:
            learned: Array = self.weights["positions"][row * self.config.grid_size + column]
            return learned
        quarter = self.config.hidden_size // 4
        frequencies = [10000 ** (-i / quarter) for i in range(quarter)]
        waves = [wave(place * f) for place in (column, row) for wave in (math.sin, math.cos) for f in frequencies]
        return np.array(waves, np.float32).astype(np.float64)

    def embed(self, image: Array) -> list[Array]:
        side, tokens = self.config.patch_size, []
        for row in range(self.config.grid_size):
            for column in range(self.config.grid_size):
                patch = image[:, row * side : (row + 1) * side, column * side : (column + 1) * side]
                numbers = [patch[:, y, x] for y in range(side) for x in range(side)]
                tokens.append(self.linear(np.concatenate(numbers), "patch_embed") + self.position(row, column))
        return tokens

    def attention(self, tokens: list[Array], name: str) -> list[Array]:
        heads, width = self.config.num_heads, self.config.head_dim
        queries, keys, values = [], [], []
        for token in tokens:
            qkv = self.linear(token, f"{name}.qkv").reshape(3, heads, width)
            if f"{name}.q_norm.weight" in self.weights:
                for head in range(heads):
                    qkv[0, head] = self.norm(qkv[0, head], f"{name}.q_norm")
                    qkv[1, head] = self.norm(qkv[1, head], f"{name}.k_norm")
            queries.append(qkv[0])
            keys.append(qkv[1])
            values.append(qkv[2])
        outputs = []
        for query in queries:
            parts = []
            for head in range(heads):
                scores = np.array([math.exp(float(query[head] @ key[head]) / math.sqrt(width)) for key in keys])
                parts.append(sum(s * value[head] for s, value in zip(scores, values, strict=True)) / scores.sum())
            outputs.append(self.linear(np.concatenate(parts), f"{name}.proj"))
        return outputs

    def mlp(self, x: Array, name: str) -> Array:
        hidden = self.linear(x, f"{name}.0")
        gelu = 0.5 * hidden * (1 + np.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
        return self.linear(gelu, f"{name}.2")

    def block(self, tokens: list[Array], name: str, condition: Array | None) -> list[Array]:
        if condition is None:
            attended = self.attention([self.norm(x, f"{name}.norm1") for x in tokens], f"{name}.attn")
            tokens = [x + y for x, y in zip(tokens, attended, strict=True)]
            return [x + self.mlp(self.norm(x, f"{name}.norm2"), f"{name}.mlp") for x in tokens]
        shift1, scale1, gate1, shift2, scale2, gate2 = np.split(self.linear(condition, f"{name}.modulation"), 6)
        standard = [(x - x.mean()) / math.sqrt(x.var() + 1e-6) for x in tokens]
        attended = self.attention([x * (1 + scale1) + shift1 for x in standard], f"{name}.attn")
        tokens = [x + gate1 * y for x, y in zip(tokens, attended, strict=True)]
        standard = [(x - x.mean()) / math.sqrt(x.var() + 1e-6) for x in tokens]
        return [
            x + gate2 * self.mlp(s * (1 + scale2) + shift2, f"{name}.mlp")
            for x, s in zip(tokens, standard, strict=True)
        ]

    def layers(self, image: Tensor, *, t: int | None = None, null: bool = False) -> list[Array]:
        """Return the tokens (L, D) of the embedding and behind each block."""
        tokens, condition = self.embed(image.double().numpy()), None
        if isinstance(self.config, DiTConfig):
            condition = np.zeros(self.config.hidden_size)
            if null:
                row: Any = self.weights["class_embed.weight"][self.config.num_classes]
                condition = sigmoid_linear(self.time(t or 0) + row)
        elif t is not None:
            tokens = [token + self.time(t) for token in tokens]
        found = [np.stack(tokens)]
        for index in range(self.config.depth):
            tokens = self.block(tokens, f"blocks.{index}", condition)
            found.append(np.stack(tokens))
        return found
