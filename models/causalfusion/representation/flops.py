"""Exact FLOPs of the matrix products of one image in a fine-tuned model, by the rules of `causalfusion.flops`.

Symbols: L image tokens, T text tokens, D width of the backbone, W width of a captioner's head.
"""

from __future__ import annotations

from ..model import ModelConfig
from .captioner import CaptionerConfig
from .classifier import ClassifierConfig


def finetuned_flops(config: ClassifierConfig | CaptionerConfig, text: int | None = None) -> int:
    """Return the forward FLOPs of one image, with all pairs of tokens.

    Args:
        config: the model.
        text: tokens of the text that a captioner scores (default: the most that it takes).
    """
    head = _classifier_head(config) if isinstance(config, ClassifierConfig) else _captioner_head(config, text)
    return 2 * (_backbone(config) + head)


def finetuning_flops(
    config: ClassifierConfig | CaptionerConfig, *, frozen: bool = False, text: int | None = None
) -> int:
    """Return the FLOPs of training on one image, forward and backward.

    Args:
        config: the model.
        frozen: the backbone is not trained and has no backward pass.
        text: as in `finetuned_flops`.
    """
    return 3 * finetuned_flops(config, text) - (4 * _backbone(config) if frozen else 0)


def _backbone(config: ClassifierConfig | CaptionerConfig) -> int:
    """Return the multiply-adds of patch embedding and blocks."""
    size: ModelConfig = config.backbone
    depth = size.depth if isinstance(config, ClassifierConfig) else config.layer
    tokens, width = size.num_tokens, size.hidden_size
    return tokens * size.token_dim * width + depth * _layer(tokens, width, size.mlp_size)


def _layer(tokens: int, width: int, hidden: int) -> int:
    """Return the multiply-adds of self-attention and MLP."""
    return tokens * (4 * width**2 + 2 * width * hidden) + 2 * width * tokens**2


def _classifier_head(config: ClassifierConfig) -> int:
    return config.backbone.hidden_size * config.num_classes


def _captioner_head(config: CaptionerConfig, text: int | None) -> int:
    count = config.text.max_tokens if text is None else text
    tokens, width, hidden = config.backbone.num_tokens, config.width, round(config.width * config.mlp_ratio)
    encoder = config.encoder_depth * _layer(tokens, width, hidden)
    cross = 2 * width**2 * (count + tokens) + 2 * width * count * tokens
    decoder = config.decoder_depth * (_layer(count, width, hidden) + cross)
    return tokens * config.backbone.hidden_size * width + encoder + decoder + count * width * config.text.vocabulary
