"""Weights for people: a folder with `model.safetensors` and `config.json`; no pickle."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .config import CausalFusionConfig
from .transformer import CausalFusion

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"


def save_weights(folder: Path, config: CausalFusionConfig, state: dict[str, Tensor]) -> None:
    """Write a model's configuration and state (name → tensor) into `folder`, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    (folder / CONFIG_FILE).write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")


def load_weights(folder: Path, *, device: torch.device | str = "cpu") -> CausalFusion:
    """Build the model saved in `folder`, in evaluation mode.

    Raises:
        FileNotFoundError: a file of the folder is missing.
        RuntimeError: keys or shapes differ from the configuration; they are listed by name.
    """
    config = CausalFusionConfig(**json.loads((folder / CONFIG_FILE).read_text()))
    model = CausalFusion(config)
    model.load_state_dict(load_file(folder / WEIGHTS_FILE))
    return model.to(device).eval()
