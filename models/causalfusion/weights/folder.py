"""Weights folders without pickle: `model.safetensors`, `config.json`, `diffusion.json`, perhaps `classes.json`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
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
CLASSES_FILE = "classes.json"

_Settings = TypeVar("_Settings")


def save_weights(
    folder: Path,
    config: ModelConfig,
    state: dict[str, Tensor],
    diffusion: DiffusionConfig | None = None,
    class_names: Sequence[str] | None = None,
) -> None:
    """Write a model's configuration and state (name → tensor) into `folder`, which is made if needed.

    Args:
        diffusion: the noise process of its training (default: that of the paper).
        class_names: the name of each class (default: not known).
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    for name, settings in ((CONFIG_FILE, config), (DIFFUSION_FILE, diffusion or DiffusionConfig())):
        (folder / name).write_text(json.dumps(dataclasses.asdict(settings), indent=2) + "\n", encoding="utf-8")
    (folder / CLASSES_FILE).unlink(missing_ok=True)
    if class_names is not None:
        text = json.dumps(list(class_names), indent=2, ensure_ascii=False)
        (folder / CLASSES_FILE).write_text(text + "\n", encoding="utf-8")


def load_weights(folder: Path | str, *, device: torch.device | str = "cpu") -> Model:
    """Build the model saved in `folder`, in evaluation mode.

    Raises:
        FileNotFoundError: a file of the folder is missing.
        RuntimeError: keys or shapes differ from the configuration. They are listed by name.
        ValueError: the configuration is not one of a known model.
    """
    folder = Path(folder)
    fields = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
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


def load_class_names(folder: Path | str) -> list[str] | None:
    """Return the name of each class of the model saved in `folder`, or None if they are not known.

    Raises:
        ValueError: the file is not a list of names.
    """
    file = Path(folder) / CLASSES_FILE
    if not file.is_file():
        return None
    try:
        names = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: {error}") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{file} is not a list of names")
    return names


def _read(kind: type[_Settings], file: Path) -> _Settings:
    """Read a configuration.

    Raises:
        ValueError: a key is unknown, or a value is not allowed.
    """
    try:
        return kind(**json.loads(file.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: {error}") from error
