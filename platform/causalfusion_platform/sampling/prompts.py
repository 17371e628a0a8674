"""Prompts of models of text, as they are typed: checks, and the tokenizer beside the weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from causalfusion import CausalFusionConfig, ModelConfig, Prompts, TextConfig
from causalfusion.text.prompts import encode_prompts
from causalfusion.text.tokenizer import Tokenizer
from causalfusion.weights.folder import load_tokenizer

from ..config.errors import UserError


def text_of(model: ModelConfig) -> TextConfig | None:
    """Return the text of a model. None: it draws images of classes."""
    return model.text if isinstance(model, CausalFusionConfig) else None


def tokenizer_of(weights: Path, model: ModelConfig) -> Tokenizer | None:
    """Return the tokenizer beside the weights of a model of text. None: the model is one of classes.

    Raises:
        UserError: it is missing, damaged, or not that of the model's training.
    """
    if text_of(model) is None:
        return None
    try:
        return load_tokenizer(weights)
    except ValueError as error:
        raise UserError(f"{error}\n  copy the tokenizer.json of the model's training into {weights}") from error


def as_prompts(texts: Sequence[str], tokenizer: Tokenizer, model: ModelConfig) -> Prompts:
    """Return the tokens of prompts.

    Raises:
        UserError: one is empty or too long.
    """
    text = text_of(model)
    assert text is not None
    try:
        return encode_prompts(texts, tokenizer, text.max_tokens)
    except ValueError as error:
        raise UserError(str(error)) from error


def check_asked(model: ModelConfig, labels: str | None, texts: Sequence[str]) -> None:
    """Check that a model of text is given prompts, and a model of classes none.

    Raises:
        UserError: labels and prompts are mixed, or the model does not draw from such.
    """
    if labels is not None and texts:
        raise UserError("--labels and --text exclude each other\n  leave one of them out")
    if text_of(model) is None:
        if texts:
            kind = "DiT" if model.architecture == "dit" else "model"
            raise UserError(
                f"this {kind} draws classes, not text\n  give classes in place of --text: "
                f"--labels 0, up to --labels 0-{model.num_classes - 1}"
            )
    elif labels is not None:
        raise UserError('this model draws from text and has no classes\n  give --text "…" in place of --labels')
    elif not texts:
        raise UserError('this model draws from text\n  give one prompt or more: --text "…" --text "…"')
