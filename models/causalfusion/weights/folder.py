"""Weights folders without pickle: `model.safetensors`, `config.json` and `diffusion.json`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..model import CONFIGS, Model, ModelConfig, build_model
from ..noise.diffusion import DiffusionConfig

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
DIFFUSION_FILE = "diffusion.json"

_Settings = TypeVar("_Settings")


def save_weights(
    folder: Path, config: ModelConfig, state: dict[str, Tensor], diffusion: DiffusionConfig | None = None
) -> None:
    """Write a model's configuration and state (name → tensor) into `folder`, which is made if needed.

    Args:
        diffusion: the noise process of its training (default: that of the paper).
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    for name, settings in ((CONFIG_FILE, config), (DIFFUSION_FILE, diffusion or DiffusionConfig())):
        (folder / name).write_text(json.dumps(dataclasses.asdict(settings), indent=2) + "\n")


def load_weights(folder: Path | str, *, device: torch.device | str = "cpu") -> Model:
    """Build the model saved in `folder`, in evaluation mode.

    Raises:
        FileNotFoundError: a file of the folder is missing.
        RuntimeError: keys or shapes differ from the configuration. They are listed by name.
        ValueError: the configuration is not one of a known model.
    """
    folder = Path(folder)
    fields = json.loads((folder / CONFIG_FILE).read_text())
    architecture = fields.get("architecture", "causalfusion")
    if architecture not in CONFIGS:
        raise ValueError(
            f"{folder / CONFIG_FILE}: unknown architecture {architecture!r}; known: {', '.join(CONFIGS)}"
        )
    model = build_model(_read(CONFIGS[architecture], folder / CONFIG_FILE))
    model.load_state_dict(load_file(folder / WEIGHTS_FILE))
    return model.to(device).eval()


def load_diffusion(folder: Path | str) -> DiffusionConfig:
    """Return the noise process that the model saved in `folder` was trained with.

    A folder without `diffusion.json` stands for the paper's noise process.
    """
    file = Path(folder) / DIFFUSION_FILE
    return _read(DiffusionConfig, file) if file.is_file() else DiffusionConfig()


def _read(kind: type[_Settings], file: Path) -> _Settings:
    """Read a configuration.

    Raises:
        ValueError: a key is unknown, or a value is not allowed.
    """
    try:
        return kind(**json.loads(file.read_text()))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: {error}") from error
