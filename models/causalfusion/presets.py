"""Models by name: the paper's sizes, and small ones for laptops and tests."""

from __future__ import annotations

import dataclasses
from typing import Any

from .config import CausalFusionConfig


def _latent(size: int, channels: int, patch: int) -> dict[str, Any]:
    return {"input_size": size, "in_channels": channels, "patch_size": patch}


# What the columns of Tables 9 and 10 share: SD VAE (f8c4, patch 2) for ablations, MAR VAE (f16c16) for systems.
_SD_256 = _latent(32, 4, 2)
_MAR_256 = _latent(16, 16, 1)
_MAR_512 = _latent(32, 16, 1)
_DIGITS = _latent(8, 1, 2) | {"num_classes": 10}
_L: dict[str, Any] = {"hidden_size": 1024, "depth": 24, "num_heads": 16}
_XL: dict[str, Any] = {"hidden_size": 1280, "depth": 32, "num_heads": 20}
_H: dict[str, Any] = {"hidden_size": 1408, "depth": 40, "num_heads": 22}


def _system(latent: dict[str, Any], size: dict[str, Any]) -> CausalFusionConfig:
    return CausalFusionConfig(**latent, **size, class_tokens=64, position_embedding="learnable")


PRESETS: dict[str, CausalFusionConfig] = {
    # name                        latent      size and options                                            source
    "tiny": CausalFusionConfig(**_DIGITS, hidden_size=32, depth=2, num_heads=2, class_tokens=2),  # tests
    "digits": CausalFusionConfig(**_DIGITS, hidden_size=96, depth=4, num_heads=3),  # 8×8 handwritten digits
    "L/2": CausalFusionConfig(**_SD_256, **_L),  # Table 9: the ablations
    "L-system-256": _system(_MAR_256, _L),  # Table 10
    "L-system-512": _system(_MAR_512, _L),  # Table 10
    "XL-system-256": _system(_MAR_256, _XL),  # Table 10
    "XL-system-512": _system(_MAR_512, _XL),  # Table 10
    "H-system-256": _system(_MAR_256, _H),  # Table 10 prints 40 layers
    "H48-system-256": _system(_MAR_256, _H | {"depth": 48}),  # the release has 48 layers
}


def preset(name: str, **changes: object) -> CausalFusionConfig:
    """Return the named configuration, with `changes` applied to its fields.

    Raises:
        KeyError: no such preset; the message lists those that exist.
        ValueError: a change is out of range.
    """
    if name not in PRESETS:
        raise KeyError(f"no model preset {name!r}; presets: {', '.join(PRESETS)}")
    return dataclasses.replace(PRESETS[name], **changes)  # type: ignore[arg-type]
