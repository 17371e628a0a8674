"""Kinds of models: CausalFusion, and the baselines of Table 1 (AdaLN-zero DiT) and Table 6a (Transfusion)."""

from __future__ import annotations

import torch

from .baselines.dit import DiT, DiTConfig, DiTContext
from .baselines.transfusion import Transfusion
from .config import CausalFusionConfig
from .transformer import CausalFusion, CausalFusionContext

ModelConfig = CausalFusionConfig | DiTConfig
Model = CausalFusion | DiT
Context = CausalFusionContext | DiTContext
"""Condition of the AR steps during sampling."""

CONFIGS: dict[str, type[ModelConfig]] = {
    "causalfusion": CausalFusionConfig,
    "transfusion": CausalFusionConfig,
    "dit": DiTConfig,
}


def build_model(config: ModelConfig) -> Model:
    """Return a new model of the configured kind and size, with the initial weights of the paper."""
    if isinstance(config, DiTConfig):
        return DiT(config)
    return Transfusion(config) if config.architecture == "transfusion" else CausalFusion(config)


def count_parameters(config: ModelConfig) -> int:
    """Return the exact number of trainable parameters without allocating them."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_model(config).parameters())
