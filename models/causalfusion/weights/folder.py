"""Weights folders without pickle: `model.safetensors`, `config.json`, `diffusion.json`.

A model of classes has their names in `classes.json` if they are known, a model of text its `tokenizer.json`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..config import CausalFusionConfig, TextConfig
from ..model import CONFIGS, Model, ModelConfig, build_model
from ..noise.diffusion import DiffusionConfig
from ..text.tokenizer import Tokenizer

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
DIFFUSION_FILE = "diffusion.json"
CLASSES_FILE = "classes.json"
TOKENIZER_FILE = "tokenizer.json"
_LARGEST_JSON = 16 << 20
"""Bytes above which a file of settings or names is refused."""

FINETUNED = ("classifier", "captioner")
"""Architectures of `causalfusion.representation`, which draw no images."""

_Settings = TypeVar("_Settings")
_Module = TypeVar("_Module", bound=nn.Module)


def save_weights(
    folder: Path,
    config: ModelConfig,
    state: dict[str, Tensor],
    diffusion: DiffusionConfig | None = None,
    class_names: Sequence[str] | None = None,
    tokenizer: Tokenizer | None = None,
) -> None:
    """Write a model's configuration and state (name → tensor) into `folder`, which is made if needed.

    Args:
        diffusion: the noise process of its training (default: that of the paper).
        class_names: the name of each class (default: not known).
        tokenizer: of a model of text, whose configuration then names it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer is not None and isinstance(config, CausalFusionConfig) and config.text is not None:
        named = dataclasses.replace(config.text, tokenizer_sha256=tokenizer.digest)
        config = dataclasses.replace(config, text=named)
        (folder / TOKENIZER_FILE).write_text(tokenizer.json, encoding="utf-8")
    write_tensors(folder, state)
    write_settings(folder / CONFIG_FILE, config)
    write_settings(folder / DIFFUSION_FILE, diffusion or DiffusionConfig())
    write_class_names(folder, class_names)


def write_tensors(folder: Path, state: dict[str, Tensor]) -> None:
    """Write a model's state as safetensors."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def write_settings(file: Path, settings: Any) -> None:
    """Write the fields of a dataclass as JSON."""
    file.write_text(json.dumps(dataclasses.asdict(settings), indent=2) + "\n", encoding="utf-8")


def write_class_names(folder: Path, names: Sequence[str] | None) -> None:
    """Write the name of each class. None: they are not known."""
    (folder / CLASSES_FILE).unlink(missing_ok=True)
    if names is not None:
        text = json.dumps(list(names), indent=2, ensure_ascii=False)
        (folder / CLASSES_FILE).write_text(text + "\n", encoding="utf-8")


def load_weights(folder: Path | str, *, device: torch.device | str = "cpu") -> Model:
    """Build the model saved in `folder`, in evaluation mode.

    Raises:
        FileNotFoundError: a file of the folder is missing.
        RuntimeError: keys or shapes differ from the configuration. They are listed by name.
        ValueError: the configuration is not one of a known model, or the file of tensors is damaged.
    """
    folder = Path(folder)
    config = load_config(folder)
    return load_module(folder / WEIGHTS_FILE, lambda: build_model(config)).to(device).eval()


def load_module(file: Path, build: Callable[[], _Module]) -> _Module:
    """Build a module, and read its state from a file of tensors.

    Raises:
        FileNotFoundError: the file is missing.
        RuntimeError: keys or shapes differ from the module's. They are listed by name.
        ValueError: the file is damaged.
    """
    try:
        _check_shapes(file, build)
        tensors = load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file}: {error}") from error
    module = build()
    module.load_state_dict(tensors)
    return module


def load_config(folder: Path | str) -> ModelConfig:
    """Return the configuration of the model saved in `folder`, without building it.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not one of a known model.
    """
    file = Path(folder) / CONFIG_FILE
    fields = read_object(file)
    architecture = fields.get("architecture", "causalfusion")
    if architecture in FINETUNED:
        raise ValueError(
            f"{file} is that of a fine-tuned {architecture}, which draws no images: load it with "
            "causalfusion.representation.load_finetuned"
        )
    if not isinstance(architecture, str) or architecture not in CONFIGS:
        raise ValueError(f"{file}: unknown architecture {architecture!r:.100}; known: {', '.join(CONFIGS)}")
    return settings_of(CONFIGS[architecture], fields, file)


def load_diffusion(folder: Path | str) -> DiffusionConfig:
    """Return the noise process that the model saved in `folder` was trained with.

    A folder without `diffusion.json` stands for the paper's noise process.
    """
    file = Path(folder) / DIFFUSION_FILE
    return settings_of(DiffusionConfig, read_object(file), file) if file.is_file() else DiffusionConfig()


def load_class_names(folder: Path | str) -> list[str] | None:
    """Return the name of each class of the model saved in `folder`, or None if they are not known.

    Raises:
        ValueError: the file is not a list of names.
    """
    file = Path(folder) / CLASSES_FILE
    if not file.is_file():
        return None
    names = _read_json(file)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{file} is not a list of names")
    return names


def load_tokenizer(folder: Path | str) -> Tokenizer:
    """Return the tokenizer of the model of text saved in `folder`.

    Raises:
        ValueError: the model has no text, or its tokenizer is missing, damaged, another one, or too large.
    """
    config = load_config(folder)
    text = config.text if isinstance(config, CausalFusionConfig) else None
    if text is None:
        raise ValueError(f"the model in {folder} has no text, and so no tokenizer")
    tokenizer = Tokenizer.read(Path(folder) / TOKENIZER_FILE)
    check_tokenizer(text, tokenizer, f"{Path(folder) / TOKENIZER_FILE}")
    return tokenizer


def check_tokenizer(text: TextConfig, tokenizer: Tokenizer, source: str) -> None:
    """Check that a tokenizer is that of a model.

    Raises:
        ValueError: it has more tokens than the model's table, or is not the one of its training.
    """
    if tokenizer.size > text.vocabulary:
        raise ValueError(
            f"{source} has {tokenizer.size:,} tokens, but the model's table {text.vocabulary:,} (text.vocabulary)"
        )
    if text.tokenizer_sha256 not in (None, tokenizer.digest):
        raise ValueError(
            f"{source} is not the tokenizer of the model's training: its SHA-256 is {tokenizer.digest[:12]}…, "
            f"that of training {str(text.tokenizer_sha256)[:12]}…"
        )


def _check_shapes(file: Path, build: Callable[[], nn.Module]) -> None:
    """Compare keys and shapes with a module's before anything is allocated.

    Raises:
        RuntimeError: they differ. They are listed by name.
    """
    with safe_open(file, "pt") as opened, torch.device("meta"):
        tensors = {name: torch.empty(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
        build().load_state_dict(tensors)


def read_object(file: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ValueError: the file is not one.
    """
    fields = _read_json(file)
    if not isinstance(fields, dict):
        raise ValueError(f"{file} holds a {type(fields).__name__}, not settings by name")
    return fields


def _read_json(file: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: the file is not one, or is larger than such files are.
    """
    if file.exists() and not file.is_file():
        raise ValueError(f"{file} is not a file")
    with file.open("rb") as opened:
        content = opened.read(_LARGEST_JSON + 1)
    if len(content) > _LARGEST_JSON:
        raise ValueError(f"{file} is larger than {_LARGEST_JSON:,} bytes")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: it is not JSON: {error!s:.200}") from error


def settings_of(kind: type[_Settings], fields: dict[str, Any], file: Path) -> _Settings:
    """Make a configuration of the fields of a file.

    Raises:
        ValueError: a key is unknown, or a value is not allowed.
    """
    try:
        return kind(**fields)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: {error!s:.300}") from error
