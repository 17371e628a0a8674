"""Tiny models of 16 tokens and 2 blocks, every parameter of which is random."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn

from causalfusion.baselines import DiT, DiTConfig

SIZES: dict[str, Any] = {
    "input_size": 8,
    "in_channels": 1,
    "patch_size": 2,
    "hidden_size": 16,
    "depth": 2,
    "num_heads": 2,
    "num_classes": 3,
}
M = TypeVar("M", bound=nn.Module)


def randomised(model: M) -> M:
    """Return a model in float64 and in evaluation mode, with random parameters.

    A new model has zero biases, identity norms and a zero head, which would hide errors in their use.
    """
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.double().named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            is_gain = "norm" in name and name.endswith("weight")
            parameter.copy_(1 + 0.2 * noise if is_gain else 0.25 * noise)
    return model.eval()


def dit_config(**changes: Any) -> DiTConfig:
    """Return the configuration of a tiny DiT."""
    return DiTConfig(**(SIZES | changes))


def random_dit(**changes: Any) -> DiT:
    """Return a tiny DiT."""
    return randomised(DiT(dit_config(**changes)))
