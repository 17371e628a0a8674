"""Plain ViT form of a trained model, for fine-tuning (Appendix C).

The appendix keeps "the basic architecture of the Vision Transformer" without its class token. It excludes the
embeddings of time and label, and the positions of class tokens.

Shapes: B images, L image tokens, N tokens, D width, K residual branches.
"""

from __future__ import annotations

import dataclasses
from typing import cast

import torch
from torch import Tensor, nn

from ..baselines.dit import DiT, DiTAttention, DiTBlock, DiTConfig, adaptive_norm
from ..config import CausalFusionConfig
from ..embed import sinusoids_2d
from ..linear import Linear, mlp
from ..model import Model, ModelConfig
from ..patches import patchify
from ..transformer import Block
from .drop_path import branch_scales, drop_path_rates
from .features import Condition, check_condition, check_shape, dit_condition


class PlainBlock(Block):
    """Block of a CausalFusion without a mask, whose residual branches may be dropped."""

    def forward(self, x_BND: Tensor, scales_B2: Tensor | None = None) -> Tensor:  # type: ignore[override]
        x_BND = x_BND + _scaled(self.attn(self.norm1(x_BND), None), scales_B2, 0)
        return x_BND + _scaled(self.mlp(self.norm2(x_BND)), scales_B2, 1)

    def load(self, block: nn.Module) -> None:
        """Copy the weights of a trained block."""
        self.load_state_dict(block.state_dict())


class PlainDiTBlock(nn.Module):
    """Block of a DiT at one condition, which is the same for all images.

    The modulation is a vector then: shift, scale and gate of the attention, and those of the MLP. It takes the
    place of the parameters of a ViT's layer norms.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width, hidden = config.hidden_size, config.mlp_size
        self.modulation = nn.Parameter(torch.zeros(6 * width))
        self.attn = DiTAttention(config)
        self.mlp = mlp(width, hidden)

    def forward(self, x_BND: Tensor, scales_B2: Tensor | None = None) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation[None].chunk(6, dim=-1)
        attended = gate1 * self.attn(adaptive_norm(x_BND, shift1, scale1))
        x_BND = x_BND + _scaled(attended, scales_B2, 0)
        return x_BND + _scaled(gate2 * self.mlp(adaptive_norm(x_BND, shift2, scale2)), scales_B2, 1)

    def load(self, block: DiTBlock, condition: Tensor) -> None:
        """Copy the weights of a trained block at a condition (1, D)."""
        self.attn.load_state_dict(block.attn.state_dict())
        self.mlp.load_state_dict(block.mlp.state_dict())
        self.modulation.copy_(block.modulation(condition)[0])


def _scaled(branch_BND: Tensor, scales_B2: Tensor | None, place: int) -> Tensor:
    return branch_BND if scales_B2 is None else branch_BND * scales_B2[:, place, None, None].to(branch_BND.dtype)


class Backbone(nn.Module):
    """Patch embedding, positions and the first blocks of a model, with the initial weights of a new one.

    Its tokens are `causalfusion.representation.features` of clean latents. Sinusoidal positions stay frozen.

    Args:
        config: the trained model.
        depth: number of blocks (default: all).
        drop_path: rate of the last block's drop path. The others follow linearly.
        condition: condition of a DiT.

    Raises:
        ValueError: the model lacks this condition.
    """

    positions: Tensor
    """(L, D) in raster order: a parameter if the model has learned ones."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        depth: int | None = None,
        drop_path: float = 0.0,
        condition: Condition = "none",
    ) -> None:
        super().__init__()
        check_condition(config, condition)
        self.config, self.condition = config, condition
        self.depth = config.depth if depth is None else depth
        self.drop_path_rates = drop_path_rates(drop_path, self.depth)
        self.patch_embed = Linear(config.token_dim, config.hidden_size)
        positions = sinusoids_2d(config.hidden_size, config.grid_size, config.grid_size)
        if isinstance(config, CausalFusionConfig) and config.position_embedding == "learnable":
            self.positions = nn.Parameter(positions)
        else:
            self.register_buffer("positions", positions, persistent=False)
        self.blocks = nn.ModuleList(_block(config) for _ in range(self.depth))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, latents: Tensor, drawn_BK: Tensor | None = None) -> Tensor:
        """Return the tokens behind the last block: (B, L, D) in raster order.

        Args:
            latents: (B, channels, height, width) in the model's scale.
            drawn_BK: uniform numbers of drop path (`branch_draws`). None: all branches are kept.

        Raises:
            ValueError: the latents do not fit the model.
        """
        size = self.config
        check_shape(latents, (size.in_channels, size.input_size, size.input_size))
        patches = patchify(latents.to(self.patch_embed.weight.dtype), size.patch_size)
        x: Tensor = self.patch_embed(patches) + self.positions
        scales = None if drawn_BK is None else branch_scales(drawn_BK.to(x.device), self.drop_path_rates)
        for index, block in enumerate(self.blocks):
            x = block(x, None if scales is None else scales[:, 2 * index : 2 * index + 2])
        return x

    @torch.no_grad()
    def load(self, model: Model) -> None:
        """Copy the weights of a trained model. Its head, norm, time, class and text parts are left out.

        Raises:
            ValueError: the model has another configuration.
        """
        _check_same(model.config, self.config)
        self.patch_embed.load_state_dict(model.patch_embed.state_dict())
        self.positions.copy_(model.positions)
        condition = dit_condition(model, self.condition) if isinstance(model, DiT) else None
        for own, block in zip(self.blocks, model.blocks, strict=False):
            if condition is None:
                cast(PlainBlock, own).load(block)
            else:
                cast(PlainDiTBlock, own).load(cast(DiTBlock, block), condition)


def _block(config: ModelConfig) -> PlainBlock | PlainDiTBlock:
    return PlainDiTBlock(config) if isinstance(config, DiTConfig) else PlainBlock(config)


def differing_settings(found: ModelConfig, wanted: ModelConfig) -> list[str]:
    """Return the settings in which a model differs from another, such as "depth 3, not 2"."""
    given, own = dataclasses.asdict(found), dataclasses.asdict(wanted)
    return [
        f"{name} {given.get(name)!r:.60}, not {own.get(name)!r:.60}"
        for name in {**own, **given}
        if given.get(name) != own.get(name)
    ]


def _check_same(found: ModelConfig, wanted: ModelConfig) -> None:
    """Compare the configurations of a trained model and of a backbone.

    Raises:
        ValueError: they differ.
    """
    differing = differing_settings(found, wanted)
    if differing:
        raise ValueError(f"the backbone is that of another model, the given one has {'; '.join(differing)}")
