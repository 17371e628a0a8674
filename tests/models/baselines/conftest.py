"""What the baselines' tests share: tiny DiTs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from causalfusion.baselines import DiT, DiTConfig


@pytest.fixture
def make_dit_config() -> Callable[..., DiTConfig]:
    """Return a function that makes the configuration of a tiny DiT: 16 tokens of 8 numbers, 2 blocks."""

    def make(**changes: object) -> DiTConfig:
        sizes: dict[str, object] = {
            "input_size": 8,
            "in_channels": 2,
            "patch_size": 2,
            "hidden_size": 16,
            "depth": 2,
            "num_heads": 2,
            "num_classes": 3,
        }
        return DiTConfig(**(sizes | changes))  # type: ignore[arg-type]

    return make


@pytest.fixture
def make_dit(make_dit_config: Callable[..., DiTConfig]) -> Callable[..., DiT]:
    """Return a function that makes a tiny float64 DiT, every parameter of which is random.

    A new DiT's blocks are the identity and its output is zero, which would hide any error.
    """

    def make(**changes: object) -> DiT:
        model = DiT(make_dit_config(**changes)).double()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(0.25 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        return model.eval()

    return make
