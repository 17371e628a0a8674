"""A plainly written CausalFusion, to measure ours against: the same weights and results, no care for speed.

Attention is softmax(q kᵀ + mask) v with a float mask that every layer makes anew; while sampling, keys and values
are concatenated at every diffusion step; every block computes every token. Products are those of torch itself.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from causalfusion import CausalFusion
from causalfusion.attention.mask import visible_between
from causalfusion.attention.plan import AttentionPlan
from causalfusion.transformer import Block

Cache = dict[int, tuple[Tensor, Tensor]]


def linear(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a layer in torch's own way."""
    assert isinstance(layer, nn.Linear)
    return functional.linear(x, layer.weight, layer.bias)


def mlp(block: Block, x: Tensor) -> Tensor:
    """Apply the MLP of a block in torch's own way."""
    return linear(block.mlp[2], block.mlp[1](linear(block.mlp[0], x)))


def attention(
    block: Block, x: Tensor, hidden: Tensor | None, kept: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output, and the keys and values of all tokens; `hidden` is (N, N), True where attention is not."""
    own = block.attn
    q, k, v = rearrange(linear(own.qkv, x), "b n (three h e) -> three b h n e", three=3, h=own.num_heads)
    q, k = own.q_norm(q), own.k_norm(k)
    if kept is not None:
        k, v = torch.cat([kept[0], k], dim=2), torch.cat([kept[1], v], dim=2)
    scores = (q * (1 / math.sqrt(q.shape[-1]))) @ k.transpose(-2, -1)
    if hidden is not None:
        scores = scores + torch.zeros(hidden.shape).masked_fill_(hidden, float("-inf"))
    out = scores.softmax(dim=-1) @ v
    return linear(own.proj, rearrange(out, "b h n e -> b n (h e)")), k, v


class PlainCausalFusion(torch.nn.Module):
    """Calls like a CausalFusion for training; `begin`, `predict` and `keep` are for sampling."""

    def __init__(self, model: CausalFusion) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, noised: Tensor, clean: Tensor, positions: Tensor, t: Tensor, labels: Tensor, plan: AttentionPlan
    ) -> Tensor:
        model = self.model
        x = torch.cat(
            [
                model.class_tokens(labels),
                model.embed_image(clean, positions[:, : clean.shape[1]]),
                model.embed_noised(noised, positions, t),
            ],
            dim=1,
        )
        hidden = ~visible_between(plan.places, plan.places)
        for block in model.blocks:
            assert isinstance(block, Block)
            x = x + attention(block, block.norm1(x), hidden)[0]
            x = x + mlp(block, block.norm2(x))
        return model.predict(x[:, -noised.shape[1] :])

    def begin(self, labels: Tensor) -> Cache:
        cache: Cache = {}
        self._run(self.model.class_tokens(labels), cache, keep=True)
        return cache

    def predict(self, cache: Cache, noised: Tensor, positions: Tensor, t: Tensor) -> Tensor:
        return self.model.predict(self._run(self.model.embed_noised(noised, positions, t), cache, keep=False))

    def keep(self, cache: Cache, clean: Tensor, positions: Tensor) -> None:
        self._run(self.model.embed_image(clean, positions), cache, keep=True)

    def _run(self, x: Tensor, cache: Cache, *, keep: bool) -> Tensor:
        for layer, block in enumerate(self.model.blocks):
            assert isinstance(block, Block)
            out, k, v = attention(block, block.norm1(x), None, cache.get(layer))
            if keep:
                cache[layer] = (k, v)
            x = x + out
            x = x + mlp(block, block.norm2(x))
        return x
