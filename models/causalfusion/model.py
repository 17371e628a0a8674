"""Kinds of models: CausalFusion, and the AdaLN-zero DiT that Table 1 compares it with."""

from __future__ import annotations

import torch

from .baselines.dit import DiT, DiTConfig, DiTContext
from .config import CausalFusionConfig
from .transformer import CausalFusion, CausalFusionContext

ModelConfig = CausalFusionConfig | DiTConfig
Model = CausalFusion | DiT
Context = CausalFusionContext | DiTContext
"""Condition of the AR steps during sampling."""

CONFIGS: dict[str, type[ModelConfig]] = {"causalfusion": CausalFusionConfig, "dit": DiTConfig}


def build_model(config: ModelConfig) -> Model:
    """Return a new model of the configured kind and size, with the initial weights of the paper."""
    return DiT(config) if isinstance(config, DiTConfig) else CausalFusion(config)


def count_parameters(config: ModelConfig) -> int:
    """Return the exact number of trainable parameters without allocating them."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_model(config).parameters())
