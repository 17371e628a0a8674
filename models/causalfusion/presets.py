"""Named model configurations: the paper's sizes, and small ones for laptops and tests."""

from __future__ import annotations

import dataclasses
from typing import Any

from .baselines.dit import DiTConfig
from .config import CausalFusionConfig
from .model import ModelConfig


def _latent(size: int, channels: int, patch: int) -> dict[str, Any]:
    return {"input_size": size, "in_channels": channels, "patch_size": patch}


# Latents of Tables 9 and 10: SD VAE (f8c4, patch 2) for ablations, MAR VAE (f16c16) for systems.
_SD_256 = _latent(32, 4, 2)
_MAR_256 = _latent(16, 16, 1)
_MAR_512 = _latent(32, 16, 1)
_DIGITS = _latent(8, 1, 2) | {"num_classes": 10}
_L: dict[str, Any] = {"hidden_size": 1024, "depth": 24, "num_heads": 16}
_XL: dict[str, Any] = {"hidden_size": 1280, "depth": 32, "num_heads": 20}
_H: dict[str, Any] = {"hidden_size": 1408, "depth": 40, "num_heads": 22}


def _system(latent: dict[str, Any], size: dict[str, Any]) -> CausalFusionConfig:
    return CausalFusionConfig(**latent, **size, class_tokens=64, position_embedding="learnable")


# Table 1's in-context DiT before the paper's changes: the diffusion time is a token, queries and keys have no norm.
_IN_CONTEXT: dict[str, Any] = _SD_256 | _L | {"time_conditioning": "token", "qk_norm": False}

PRESETS: dict[str, ModelConfig] = {
    # Small ones: for tests, for the bundled 8×8 digits, and DiT's S and B.
    "tiny": CausalFusionConfig(**_DIGITS, hidden_size=32, depth=2, num_heads=2, class_tokens=2),
    "digits": CausalFusionConfig(**_DIGITS, hidden_size=96, depth=4, num_heads=3),
    "digits-dit": DiTConfig(**_DIGITS, hidden_size=96, depth=4, num_heads=3),
    "S/2": CausalFusionConfig(**_SD_256, hidden_size=384, depth=12, num_heads=6),
    "B/2": CausalFusionConfig(**_SD_256, hidden_size=768, depth=12, num_heads=12),
    # Table 1. Its last row is L/2 with S = 1.
    "DiT-L/2": DiTConfig(**_SD_256, **_L),
    "in-context-1": CausalFusionConfig(**_IN_CONTEXT, class_tokens=1),  # 305M: rows 2 and 3
    "in-context-4": CausalFusionConfig(**_IN_CONTEXT),  # the 4 class tokens and the time token of Section 4
    "in-context-T": CausalFusionConfig(**_SD_256, **_L, qk_norm=False),  # "+ T embedding"
    "in-context-QK": CausalFusionConfig(**_SD_256, **_L, time_conditioning="token"),  # "+ QK-norm", alone
    # Table 9 (Tables 2, 3 and 7) and Table 8.
    "L/2": CausalFusionConfig(**_SD_256, **_L),
    "L/2-16": CausalFusionConfig(**_SD_256, **_L, class_tokens=16),
    "L/2-64": CausalFusionConfig(**_SD_256, **_L, class_tokens=64),
    "L/2-1x64": CausalFusionConfig(**_SD_256, **_L, class_tokens=1, class_token_repeat=64),
    "L/2-4x16": CausalFusionConfig(**_SD_256, **_L, class_tokens=4, class_token_repeat=16),
    # Table 10 (Tables 4, 5 and the last row of 6b). It prints 40 layers for H; the release has 48.
    "L-system-256": _system(_MAR_256, _L),
    "L-system-512": _system(_MAR_512, _L),
    "XL-system-256": _system(_MAR_256, _XL),
    "XL-system-512": _system(_MAR_512, _XL),
    "H-system-256": _system(_MAR_256, _H),
    "H48-system-256": _system(_MAR_256, _H | {"depth": 48}),
}


def preset(name: str, **changes: object) -> ModelConfig:
    """Return the named configuration, with `changes` applied to its fields.

    Raises:
        KeyError: no such preset. The message lists those that exist.
        ValueError: a change is out of range.
    """
    if name not in PRESETS:
        raise KeyError(f"no model preset {name!r}; presets: {', '.join(PRESETS)}")
    return dataclasses.replace(PRESETS[name], **changes)  # type: ignore[arg-type]
