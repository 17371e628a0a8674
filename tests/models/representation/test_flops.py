"""FLOPs of fine-tuned models against torch's own counter on the real models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from causalfusion import CausalFusionConfig, DiTConfig, ModelConfig, TextConfig, preset
from causalfusion.representation import Captioner, CaptionerConfig, Classifier, ClassifierConfig
from causalfusion.representation.flops import finetuned_flops, finetuning_flops

SIZES: dict[str, Any] = {
    "input_size": 6,
    "in_channels": 3,
    "patch_size": 2,
    "hidden_size": 8,
    "depth": 3,
    "num_heads": 2,
    "num_classes": 2,
    "mlp_ratio": 2.3,
}
BACKBONES: list[ModelConfig] = [CausalFusionConfig(**SIZES), DiTConfig(**SIZES)]


@pytest.fixture(autouse=True)
def products_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute attention by plain products: torch's counter knows no fused kernel of CPUs."""
    monkeypatch.setattr("causalfusion.attention.dense.attention_form", lambda *_: "matmul")


@pytest.mark.parametrize("backbone", BACKBONES)
def test_classifier(backbone: ModelConfig) -> None:
    config = ClassifierConfig(backbone=backbone, num_classes=7)
    model = Classifier(config)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 6, 6))
    assert finetuned_flops(config) == counter.get_total_flops()


@pytest.mark.parametrize("count", [5, 9])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_captioner(backbone: ModelConfig, count: int) -> None:
    text = TextConfig(vocabulary=13, max_tokens=9)
    config = CaptionerConfig(backbone=backbone, text=text, layer=2, width=12, num_heads=3, mlp_ratio=1.7)
    model = Captioner(config).eval()
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 6, 6), torch.zeros(1, count).long())
    assert finetuned_flops(config, count) == counter.get_total_flops()
    assert finetuned_flops(config) == finetuned_flops(config, 9)


@pytest.mark.parametrize("frozen", [False, True])
def test_training(frozen: bool) -> None:
    """The backward pass costs twice the forward one, but the images themselves need no gradient."""
    config = ClassifierConfig(backbone=BACKBONES[0], num_classes=7)
    model = Classifier(config)
    model.backbone.requires_grad_(not frozen)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 6, 6)).sum().backward()
    unneeded = 0 if frozen else 2 * 9 * 12 * 8  # one of two products in the patch embedding's backward pass
    assert finetuning_flops(config, frozen=frozen) - unneeded == counter.get_total_flops()


def test_sizes_of_the_paper() -> None:
    """A plain ViT-L of 256 tokens: 12 · 24 · 1024² multiply-adds a token, and attention."""
    config = ClassifierConfig(backbone=preset("L/2"), num_classes=1000)
    blocks = 24 * (256 * 12 * 1024**2 + 2 * 1024 * 256**2)
    assert finetuned_flops(config) == 2 * (blocks + 256 * 16 * 1024 + 1024 * 1000)
    assert finetuned_flops(ClassifierConfig(backbone=preset("DiT-L/2"), num_classes=1000)) == finetuned_flops(
        config
    )


def test_parameters_of_the_papers_caption_head() -> None:
    """Width 384, 6 heads, 3 encoder and 3 decoder layers on L/2, with LLaMA-3's vocabulary."""
    text = TextConfig(vocabulary=128_256)
    with torch.device("meta"):
        model = Captioner(CaptionerConfig(backbone=preset("L/2"), text=text, layer=24))
    head = {name: p.numel() for name, p in model.named_parameters() if not name.startswith("backbone.")}
    attention, mlp, norm = 4 * 384**2 + 4 * 384, 8 * 384**2 + 5 * 384, 2 * 384
    layers = 3 * (attention + mlp + 2 * norm) + 3 * (2 * attention + mlp + 3 * norm)
    assert sum(head.values()) == 2 * 1024 + 1024 * 384 + 384 + layers + 2 * norm + (128_256 + 35) * 384
