"""Captions in bf16: those of a model that was converted as a whole, without autocast."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar

import pytest
import torch
from torch import nn

from causalfusion import CaptionConfig, CausalFusion, CausalFusionConfig, TextConfig, caption, preset
from causalfusion.representation.captioner import Captioner, CaptionerConfig
from causalfusion.text.tokenizer import Tokenizer, train_bpe
from causalfusion_platform.sampling.describe import describe

M = TypeVar("M", bound=nn.Module)

TEXTS = ["a light regular four", "a heavy slanted nine", "a light upright two"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(TEXTS, vocabulary=280)


def text_model(tokenizer: Tokenizer) -> CausalFusion:
    torch.manual_seed(0)
    text = TextConfig(vocabulary=tokenizer.size, max_tokens=8)
    config = preset("tiny", class_tokens=0, text=text)
    assert isinstance(config, CausalFusionConfig)
    return randomised(CausalFusion(config))


def captioner(tokenizer: Tokenizer) -> Captioner:
    torch.manual_seed(0)
    text = TextConfig(vocabulary=tokenizer.size, max_tokens=8)
    config = CaptionerConfig(
        backbone=preset("tiny"), layer=2, text=text, width=32, num_heads=2, encoder_depth=1, decoder_depth=1
    )
    return randomised(Captioner(config))


def randomised(model: M) -> M:
    """Return the model with no weight at zero, in inference mode."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.05)
    return model.eval()


@pytest.mark.parametrize("make", [text_model, captioner])
def test_bf16(tokenizer: Tokenizer, make: Callable[[Tokenizer], CausalFusion | Captioner]) -> None:
    model, latents = make(tokenizer), torch.randn(3, 1, 8, 8)
    half = copy.deepcopy(model).bfloat16()
    expected = caption(half, latents, begin=tokenizer.begin, end=tokenizer.end, vocabulary=tokenizer.size)
    found = describe(model, latents, tokenizer, CaptionConfig(), bf16=True)
    assert found.texts == [tokenizer.decode(expected[row]) for row in range(3)]
    assert found.log_probabilities == expected.log_probabilities.tolist()
    assert next(model.parameters()).dtype == torch.float32
