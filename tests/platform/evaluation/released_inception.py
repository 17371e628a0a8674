"""The layout of the released Inception weights, rule by rule, and what the network computes, step by step."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

State = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]

PARAMETERS = 23_834_568 + 8 * 2049
"""torchvision's InceptionV3 without its auxiliary classifier, and 8 classes more than its 1000."""


def released_layout() -> Shapes:
    """Return name → shape of every tensor of `weights-inception-2015-12-05-6726825d.pth`."""
    convolutions: Shapes = {
        "Conv2d_1a_3x3": (32, 3, 3, 3),
        "Conv2d_2a_3x3": (32, 32, 3, 3),
        "Conv2d_2b_3x3": (64, 32, 3, 3),
        "Conv2d_3b_1x1": (80, 64, 1, 1),
        "Conv2d_4a_3x3": (192, 80, 3, 3),
    }
    for block, inputs, pooled in (("5b", 192, 32), ("5c", 256, 64), ("5d", 288, 64)):
        convolutions |= {
            f"Mixed_{block}.branch1x1": (64, inputs, 1, 1),
            f"Mixed_{block}.branch5x5_1": (48, inputs, 1, 1),
            f"Mixed_{block}.branch5x5_2": (64, 48, 5, 5),
            f"Mixed_{block}.branch3x3dbl_1": (64, inputs, 1, 1),
            f"Mixed_{block}.branch3x3dbl_2": (96, 64, 3, 3),
            f"Mixed_{block}.branch3x3dbl_3": (96, 96, 3, 3),
            f"Mixed_{block}.branch_pool": (pooled, inputs, 1, 1),
        }
    convolutions |= {
        "Mixed_6a.branch3x3": (384, 288, 3, 3),
        "Mixed_6a.branch3x3dbl_1": (64, 288, 1, 1),
        "Mixed_6a.branch3x3dbl_2": (96, 64, 3, 3),
        "Mixed_6a.branch3x3dbl_3": (96, 96, 3, 3),
    }
    for block, inner in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
        convolutions |= {
            f"Mixed_{block}.branch1x1": (192, 768, 1, 1),
            f"Mixed_{block}.branch7x7_1": (inner, 768, 1, 1),
            f"Mixed_{block}.branch7x7_2": (inner, inner, 1, 7),
            f"Mixed_{block}.branch7x7_3": (192, inner, 7, 1),
            f"Mixed_{block}.branch7x7dbl_1": (inner, 768, 1, 1),
            f"Mixed_{block}.branch7x7dbl_2": (inner, inner, 7, 1),
            f"Mixed_{block}.branch7x7dbl_3": (inner, inner, 1, 7),
            f"Mixed_{block}.branch7x7dbl_4": (inner, inner, 7, 1),
            f"Mixed_{block}.branch7x7dbl_5": (192, inner, 1, 7),
            f"Mixed_{block}.branch_pool": (192, 768, 1, 1),
        }
    convolutions |= {
        "Mixed_7a.branch3x3_1": (192, 768, 1, 1),
        "Mixed_7a.branch3x3_2": (320, 192, 3, 3),
        "Mixed_7a.branch7x7x3_1": (192, 768, 1, 1),
        "Mixed_7a.branch7x7x3_2": (192, 192, 1, 7),
        "Mixed_7a.branch7x7x3_3": (192, 192, 7, 1),
        "Mixed_7a.branch7x7x3_4": (192, 192, 3, 3),
    }
    for block, inputs in (("7b", 1280), ("7c", 2048)):
        convolutions |= {
            f"Mixed_{block}.branch1x1": (320, inputs, 1, 1),
            f"Mixed_{block}.branch3x3_1": (384, inputs, 1, 1),
            f"Mixed_{block}.branch3x3_2a": (384, 384, 1, 3),
            f"Mixed_{block}.branch3x3_2b": (384, 384, 3, 1),
            f"Mixed_{block}.branch3x3dbl_1": (448, inputs, 1, 1),
            f"Mixed_{block}.branch3x3dbl_2": (384, 448, 3, 3),
            f"Mixed_{block}.branch3x3dbl_3a": (384, 384, 1, 3),
            f"Mixed_{block}.branch3x3dbl_3b": (384, 384, 3, 1),
            f"Mixed_{block}.branch_pool": (192, inputs, 1, 1),
        }
    layout: Shapes = {"fc.weight": (1008, 2048), "fc.bias": (1008,)}
    for name, shape in convolutions.items():
        layout[f"{name}.conv.weight"] = shape
        layout |= {f"{name}.bn.{part}": shape[:1] for part in ("weight", "bias", "running_mean", "running_var")}
    return layout


def random_weights(seed: int = 0) -> State:
    """Return random weights in that layout; all of them matter, and activations neither vanish nor grow."""
    generator = torch.Generator().manual_seed(seed)
    state: State = {}
    for name, shape in released_layout().items():
        noise = torch.randn(shape, generator=generator)
        if name.endswith("conv.weight"):
            state[name] = noise * (2 / noise[0].numel()) ** 0.5
        elif name.endswith(("bn.weight", "running_var")):
            state[name] = 1 + 0.2 * noise.tanh()
        else:
            state[name] = 0.1 * noise
    return state


def step_by_step(weights: State, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return pool, spatial and probabilities of images (B, 3, H, W) float64 in [−1, 1), as FID's graph has them.

    Nothing but `conv2d`, `max` and arithmetic: pools are gathered window by window.
    """
    state = {name: value.double() for name, value in weights.items()}

    def unit(x: Tensor, name: str, stride: int = 1, same: bool = True) -> Tensor:
        kernel = state[f"{name}.conv.weight"]
        pad = (kernel.shape[2] // 2, kernel.shape[3] // 2) if same else 0
        x = functional.conv2d(x, kernel, stride=stride, padding=pad)
        mean, variance, gain, offset = (
            state[f"{name}.bn.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (gain * (x - mean) / (variance + 0.001).sqrt() + offset).clamp(min=0)

    def windows(x: Tensor, stride: int, same: bool, outside: float) -> Tensor:
        padded = functional.pad(x, (1, 1, 1, 1), value=outside) if same else x
        return padded.unfold(2, 3, stride).unfold(3, 3, stride)

    def average(x: Tensor) -> Tensor:
        inside = windows(torch.ones_like(x), 1, True, 0.0).sum(dim=(-2, -1))
        return windows(x, 1, True, 0.0).sum(dim=(-2, -1)) / inside

    def maximum(x: Tensor, stride: int, same: bool) -> Tensor:
        return windows(x, stride, same, -torch.inf).amax(dim=(-2, -1))

    def chain(x: Tensor, block: str, *names: str) -> Tensor:
        for name in names:
            x = unit(x, f"{block}.{name}")
        return x

    x = unit(images, "Conv2d_1a_3x3", stride=2, same=False)
    x = unit(unit(x, "Conv2d_2a_3x3", same=False), "Conv2d_2b_3x3")
    x = maximum(x, 2, False)
    x = unit(unit(x, "Conv2d_3b_1x1"), "Conv2d_4a_3x3", same=False)
    x = maximum(x, 2, False)
    for block in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        branches = [
            chain(x, block, "branch1x1"),
            chain(x, block, "branch5x5_1", "branch5x5_2"),
            chain(x, block, "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"),
            chain(average(x), block, "branch_pool"),
        ]
        x = torch.cat(branches, dim=1)
    double = chain(x, "Mixed_6a", "branch3x3dbl_1", "branch3x3dbl_2")
    branches = [
        unit(x, "Mixed_6a.branch3x3", stride=2, same=False),
        unit(double, "Mixed_6a.branch3x3dbl_3", stride=2, same=False),
        maximum(x, 2, False),
    ]
    x = torch.cat(branches, dim=1)
    for block in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        if block == "Mixed_6d":
            # ADM's mixed_6/conv:0, 7 channels, in TensorFlow's order of axes.
            spatial = chain(x, block, "branch1x1")[:, :7].movedim(1, -1).flatten(1)
        branches = [
            chain(x, block, "branch1x1"),
            chain(x, block, *(f"branch7x7_{number}" for number in (1, 2, 3))),
            chain(x, block, *(f"branch7x7dbl_{number}" for number in (1, 2, 3, 4, 5))),
            chain(average(x), block, "branch_pool"),
        ]
        x = torch.cat(branches, dim=1)
    branches = [
        unit(chain(x, "Mixed_7a", "branch3x3_1"), "Mixed_7a.branch3x3_2", stride=2, same=False),
        unit(
            chain(x, "Mixed_7a", "branch7x7x3_1", "branch7x7x3_2", "branch7x7x3_3"),
            "Mixed_7a.branch7x7x3_4",
            stride=2,
            same=False,
        ),
        maximum(x, 2, False),
    ]
    x = torch.cat(branches, dim=1)
    for block in ("Mixed_7b", "Mixed_7c"):
        single = chain(x, block, "branch3x3_1")
        double = chain(x, block, "branch3x3dbl_1", "branch3x3dbl_2")
        pooled = average(x) if block == "Mixed_7b" else maximum(x, 1, True)
        branches = [
            chain(x, block, "branch1x1"),
            chain(single, block, "branch3x3_2a"),
            chain(single, block, "branch3x3_2b"),
            chain(double, block, "branch3x3dbl_3a"),
            chain(double, block, "branch3x3dbl_3b"),
            chain(pooled, block, "branch_pool"),
        ]
        x = torch.cat(branches, dim=1)
    pool = x.mean(dim=(2, 3))
    shares = (pool @ state["fc.weight"].T).exp()
    return pool, spatial, shares / shares.sum(dim=1, keepdim=True)
