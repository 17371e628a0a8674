"""Groups of parameters against MAE's rule, written separately for the names of MAE's ViT."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from causalfusion import ModelConfig, preset
from causalfusion.representation import Classifier, ClassifierConfig, layer_groups

Expected = dict[str, tuple[Any, float]]
"""Scale and weight decay by name."""


def renamed(name: str) -> str:
    """Return the name that MAE's ViT (of timm) has for the parameter of a classifier."""
    for own, other in (
        ("backbone.patch_embed.", "patch_embed.proj."),
        ("backbone.positions", "pos_embed"),
        ("backbone.blocks.", "blocks."),
        ("norm.", "fc_norm."),
    ):
        if name.startswith(own):
            return other + name.removeprefix(own)
    return name


def maes_rule(shapes: dict[str, torch.Size], depth: int, decay: float, weight_decay: float) -> Expected:
    """Return scale and weight decay by name, as MAE's paper and BEiT's describe them.

    There are depth + 2 layers: the embedding, the blocks, and the head with its norm. The last has the whole
    rate, and every earlier one `decay` times the rate of the next. Biases, gains and positions do not decay.
    """
    rate = {"head": 1.0}
    for block in reversed(range(depth)):
        rate[f"block {block}"] = decay * rate["head" if block == depth - 1 else f"block {block + 1}"]
    rate["embedding"] = decay * rate["block 0"]
    found = {}
    for name, shape in shapes.items():
        first, *others = name.split(".")
        layer = {"patch_embed": "embedding", "pos_embed": "embedding", "cls_token": "embedding"}.get(first, "head")
        layer = f"block {int(others[0])}" if first == "blocks" else layer
        found[name] = rate[layer], 0.0 if len(shape) == 1 or first in ("pos_embed", "cls_token") else weight_decay
    return found


def groups_by_name(classifier: Classifier, decay: float, weight_decay: float) -> Expected:
    """Return the groups of a classifier by MAE's names. Each parameter occurs once, and under its own name."""
    parameters, found = dict(classifier.named_parameters()), {}
    for group in layer_groups(classifier, decay, weight_decay):
        for name, parameter in zip(group.names, group.parameters, strict=True):
            assert parameter is parameters[name]
            assert renamed(name) not in found
            found[renamed(name)] = group.scale, group.weight_decay
    return found


@pytest.mark.parametrize("decay", [0.85, 0.5, 1.0])
@pytest.mark.parametrize(
    "config",
    [
        preset("L/2", hidden_size=64, num_heads=4),
        preset("L/2", hidden_size=64, num_heads=4, depth=3, position_embedding="learnable", qk_norm=False),
        preset("DiT-L/2", hidden_size=64, num_heads=4, depth=5),
    ],
    ids=["L/2", "learnable", "DiT"],
)
def test_every_parameter_has_maes_scale_and_weight_decay(config: ModelConfig, decay: float) -> None:
    with torch.device("meta"):
        classifier = Classifier(ClassifierConfig(backbone=config, num_classes=7))
    shapes = {renamed(name): parameter.shape for name, parameter in classifier.named_parameters()}
    expected = maes_rule(shapes, config.depth, decay, 0.05)
    found = groups_by_name(classifier, decay, 0.05)
    assert found.keys() == expected.keys()
    for name, (scale, weight_decay) in expected.items():
        assert found[name] == (pytest.approx(scale, rel=1e-12), weight_decay), name


def test_numbers_of_table_12(make_config: Callable[..., Any]) -> None:
    """L has 24 blocks: the embedding's scale is 0.85^25, that of the last block 0.85, that of the head 1."""
    with torch.device("meta"):
        classifier = Classifier(ClassifierConfig(backbone=preset("L-system-256"), num_classes=1000))
    found = groups_by_name(classifier, 0.85, 0.05)
    assert found["patch_embed.proj.weight"] == (pytest.approx(0.0171978, rel=1e-5), 0.05)
    assert found["pos_embed"] == (pytest.approx(0.0171978, rel=1e-5), 0.0)
    assert found["blocks.0.attn.qkv.weight"] == (pytest.approx(0.0202327, rel=1e-5), 0.05)
    assert found["blocks.23.mlp.2.bias"] == (0.85, 0.0)
    assert found["head.weight"] == (1.0, 0.05)
    assert found["fc_norm.weight"] == (1.0, 0.0)
    assert len(layer_groups(classifier, 0.85, 0.05)) == 2 * 26


def test_frozen_parameters_are_in_no_group(make_config: Callable[..., Any]) -> None:
    classifier = Classifier(ClassifierConfig(backbone=make_config(), num_classes=3))
    classifier.backbone.requires_grad_(False)
    groups = layer_groups(classifier, 0.85, 0.05)
    assert [(group.names, group.scale, group.weight_decay) for group in groups] == [
        (("norm.weight", "norm.bias", "head.bias"), 1.0, 0.0),
        (("head.weight",), 1.0, 0.05),
    ]


@pytest.mark.parametrize(
    ("decay", "weight_decay", "message"),
    [
        (0.0, 0.05, "layer_decay must lie in (0, 1], got 0.0"),
        (1.1, 0.05, "layer_decay must lie in (0, 1], got 1.1"),
        (0.85, -1.0, "weight_decay must not be negative, got -1.0"),
    ],
)
def test_wrong_factors(make_config: Callable[..., Any], decay: float, weight_decay: float, message: str) -> None:
    classifier = Classifier(ClassifierConfig(backbone=make_config(), num_classes=3))
    with pytest.raises(ValueError, match=re.escape(message)):
        layer_groups(classifier, decay, weight_decay)
