"""Transformer blocks of models and of fine-tuned models: recomputed, compiled, and counted for the memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from causalfusion import CausalFusionConfig, ModelConfig, TextConfig, build_model
from causalfusion.baselines.dit import DiTConfig
from causalfusion.representation import Captioner, CaptionerConfig, Classifier, ClassifierConfig
from causalfusion_platform.train.blocks import blocks_of, set_up_blocks

SIZE: dict[str, Any] = {
    "input_size": 4,
    "in_channels": 1,
    "patch_size": 2,
    "hidden_size": 8,
    "depth": 3,
    "num_heads": 2,
    "num_classes": 4,
}
BACKBONES: list[ModelConfig] = [CausalFusionConfig(**SIZE), DiTConfig(**SIZE)]


def classifier(backbone: ModelConfig) -> nn.Module:
    return Classifier(ClassifierConfig(backbone=backbone, num_classes=4, drop_path=0.1))


def captioner(backbone: ModelConfig) -> nn.Module:
    text = TextConfig(vocabulary=16, max_tokens=6)
    return Captioner(CaptionerConfig(backbone=backbone, text=text, layer=2, width=8, num_heads=2))


def run(model: nn.Module) -> Tensor:
    """Return a loss with drop path or dropout."""
    latents = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    texts = () if isinstance(model, Classifier) else (torch.tensor([[1, 5, 2], [1, 7, 2]]),)
    outputs: Tensor = model(latents, *texts, model.draw(0, [0, 1]))  # type: ignore[operator]
    return outputs.square().mean()


def gradients(model: nn.Module) -> list[Tensor]:
    trained = list(model.parameters())
    return [grad for grad in torch.autograd.grad(run(model), trained, allow_unused=True) if grad is not None]


@pytest.mark.parametrize("backbone", BACKBONES, ids=["causalfusion", "dit"])
@pytest.mark.parametrize(("make", "depth"), [(classifier, 3), (captioner, 2)])
def test_the_blocks_of_a_fine_tuned_model_are_recomputed(
    make: Callable[[ModelConfig], nn.Module], depth: int, backbone: ModelConfig
) -> None:
    """Each block runs again in the backward pass, and the gradients are the same."""
    torch.manual_seed(0)
    model = make(backbone)
    with torch.no_grad():  # a head of zeros and gates of zero would hide the blocks
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    expected = gradients(model)
    calls: list[int] = []
    for number, block in enumerate(blocks_of(model)):
        block.get_submodule("mlp").register_forward_pre_hook(lambda *_, number=number: calls.append(number))
    set_up_blocks(model, compiled=False, recomputed=True)
    found = gradients(model)
    assert sorted(calls) == sorted([*range(depth), *range(depth)])
    assert len(found) == len(expected)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("backbone", BACKBONES, ids=["causalfusion", "dit"])
@pytest.mark.parametrize(("make", "depth"), [(classifier, 3), (captioner, 2)])
def test_the_blocks_of_a_fine_tuned_model_are_compiled(
    make: Callable[[ModelConfig], nn.Module], depth: int, backbone: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[object] = []

    def compile_block(forward: object, *, dynamic: bool, fullgraph: bool) -> object:
        assert dynamic
        assert fullgraph
        compiled.append(forward)
        return forward

    monkeypatch.setattr(torch, "compile", compile_block)
    set_up_blocks(make(backbone), compiled=True, recomputed=False)
    assert len(compiled) == depth


def test_models_without_blocks_have_none() -> None:
    assert blocks_of(nn.Linear(2, 2)) == ()
    assert len(blocks_of(build_model(BACKBONES[0]))) == 3
