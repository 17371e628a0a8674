"""Folders of fine-tuned models: `model.safetensors` and `config.json`, without pickle.

A classifier has the names of its classes in `classes.json` if they are known, a captioner its `tokenizer.json`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..text.tokenizer import Tokenizer
from ..weights.folder import (
    CONFIG_FILE,
    FINETUNED,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    check_tokenizer,
    load_module,
    read_object,
    settings_of,
    write_class_names,
    write_settings,
    write_tensors,
)
from .captioner import Captioner, CaptionerConfig
from .classifier import Classifier, ClassifierConfig

FinetunedConfig = ClassifierConfig | CaptionerConfig
Finetuned = Classifier | Captioner


def build_finetuned(config: FinetunedConfig) -> Finetuned:
    """Return a new model, with the backbone's initial weights and a new head."""
    return Classifier(config) if isinstance(config, ClassifierConfig) else Captioner(config)


def save_finetuned(
    folder: Path | str,
    config: FinetunedConfig,
    state: dict[str, Tensor],
    class_names: Sequence[str] | None = None,
    tokenizer: Tokenizer | None = None,
) -> None:
    """Write a model's configuration and state (name → tensor) into `folder`, which is made if needed.

    Args:
        class_names: the name of each class of a classifier (default: not known).
        tokenizer: of a captioner, whose configuration then names it.

    Raises:
        ValueError: the tokenizer is not that of the captioner.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TOKENIZER_FILE).unlink(missing_ok=True)
    if tokenizer is not None and isinstance(config, CaptionerConfig):
        check_tokenizer(config.text, tokenizer, "the given tokenizer")
        named = dataclasses.replace(config.text, tokenizer_sha256=tokenizer.digest)
        config = dataclasses.replace(config, text=named)
        (folder / TOKENIZER_FILE).write_text(tokenizer.json, encoding="utf-8")
    write_tensors(folder, state)
    write_settings(folder / CONFIG_FILE, config)
    write_class_names(folder, class_names)


def load_finetuned(folder: Path | str, *, device: torch.device | str = "cpu") -> Finetuned:
    """Build the model saved in `folder`, in evaluation mode.

    Raises:
        FileNotFoundError: a file of the folder is missing.
        RuntimeError: keys or shapes differ from the configuration. They are listed by name.
        ValueError: the configuration is not one of a fine-tuned model, or the file of tensors is damaged.
    """
    config = load_finetuned_config(folder)
    return load_module(Path(folder) / WEIGHTS_FILE, lambda: build_finetuned(config)).to(device).eval()


def load_finetuned_config(folder: Path | str) -> FinetunedConfig:
    """Return the configuration of the model saved in `folder`, without building it.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not one of a fine-tuned model.
    """
    file = Path(folder) / CONFIG_FILE
    fields = read_object(file)
    architecture = fields.get("architecture", "causalfusion")
    if architecture not in FINETUNED:
        raise ValueError(
            f"{file}: the architecture {architecture!r:.100} is not that of a fine-tuned model, which is "
            f"{' or '.join(FINETUNED)}: load a model that draws images with causalfusion.load_weights"
        )
    if architecture == "classifier":
        return settings_of(ClassifierConfig, fields, file)
    return settings_of(CaptionerConfig, fields, file)


def is_captioner(folder: Path | str) -> bool:
    """Return whether `folder` holds a captioner. Nothing but its configuration is read."""
    try:
        return read_object(Path(folder) / CONFIG_FILE).get("architecture") == "captioner"
    except (OSError, ValueError):
        return False


def load_captioner_tokenizer(folder: Path | str) -> Tokenizer:
    """Return the tokenizer of the captioner saved in `folder`.

    Raises:
        ValueError: the model is a classifier, or its tokenizer is missing, damaged, another one, or too large.
    """
    config = load_finetuned_config(folder)
    if not isinstance(config, CaptionerConfig):
        raise ValueError(f"the model in {folder} is a classifier, which has no tokenizer")
    file = Path(folder) / TOKENIZER_FILE
    tokenizer = Tokenizer.read(file)
    check_tokenizer(config.text, tokenizer, f"{file}")
    return tokenizer
