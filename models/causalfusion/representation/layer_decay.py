"""Groups of parameters for fine-tuning.

Classifiers have MAE's layer-wise decay of the learning rate, which is BEiT's (Table 12). Captioners have one rate
for the head, and one for the backbone (Table 13).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from .captioner import Captioner
from .classifier import Classifier


@dataclass(frozen=True)
class LayerGroup:
    """Parameters that share a scale of the learning rate and a weight decay."""

    names: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]
    """One for each name."""
    scale: float
    """Factor of the learning rate."""
    weight_decay: float


def layer_groups(model: Classifier, layer_decay: float, weight_decay: float) -> list[LayerGroup]:
    """Return the groups of the trained parameters. Frozen ones are in none of them.

    Patch embedding and positions are layer 0, block i (from 0) is layer i + 1, and the rest is layer depth + 1. The
    scale of a layer is `layer_decay`^(depth + 1 − layer). Vectors and positions have no weight decay.

    Args:
        model: the classifier.
        layer_decay: factor of each layer in (0, 1] (Table 12: 0.85 for L).
        weight_decay: of matrices (Table 12: 0.05).

    Raises:
        ValueError: a factor is out of range.
    """
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay must lie in (0, 1], got {layer_decay}")
    depth = model.backbone_depth
    scales = {name: layer_decay ** (depth + 1 - layer_of(name, depth)) for name, _ in model.named_parameters()}
    return grouped(model, scales, weight_decay)


def head_groups(model: Captioner, backbone_scale: float, weight_decay: float) -> list[LayerGroup]:
    """Return the groups of the trained parameters: those of the head have the whole rate. Frozen ones are in none.

    Vectors and positions have no weight decay, as in `layer_groups`.

    Args:
        model: the captioner.
        backbone_scale: factor of the backbone's learning rate (Table 13: 0.1, for 1e-5 beside 1e-4).
        weight_decay: of matrices (Table 13: 0.01).

    Raises:
        ValueError: a factor is out of range.
    """
    if backbone_scale < 0:
        raise ValueError(f"backbone_scale must not be negative, got {backbone_scale}")
    names = [name for name, _ in model.named_parameters()]
    scales = {name: backbone_scale if name.startswith("backbone.") else 1.0 for name in names}
    return grouped(model, scales, weight_decay)


def layer_of(name: str, depth: int) -> int:
    """Return the layer of a classifier's parameter, from 0 to depth + 1."""
    if name == "backbone.positions" or name.startswith("backbone.patch_embed."):
        return 0
    if name.startswith("backbone.blocks."):
        return int(name.split(".")[2]) + 1
    return depth + 1


def grouped(model: nn.Module, scales: dict[str, float], weight_decay: float) -> list[LayerGroup]:
    """Group the trained parameters by scale and weight decay, in the order of the model.

    Raises:
        ValueError: the weight decay is negative.
    """
    if weight_decay < 0:
        raise ValueError(f"weight_decay must not be negative, got {weight_decay}")
    found: dict[tuple[float, float], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decayed = parameter.ndim > 1 and name.rpartition(".")[2] != "positions"
            found.setdefault((scales[name], weight_decay if decayed else 0.0), []).append((name, parameter))
    return [
        LayerGroup(tuple(name for name, _ in rows), tuple(parameter for _, parameter in rows), scale, decay)
        for (scale, decay), rows in found.items()
    ]
