"""The InceptionV3 of FID (2015-12-05) in plain torch, with the names of its released weights.

It is not the InceptionV3 of the paper or of torchvision. All three differences are part of FID:

- The average pools leave the padding out of the mean.
- The last block has a maximum pool in place of an average.
- It has 1008 outputs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

INPUT_SIZE = 299
POOL_WIDTH = 2048
NUM_CLASSES = 1008
SPATIAL_CHANNELS = 7
SPATIAL_WIDTH = 17 * 17 * SPATIAL_CHANNELS


class Unit(NamedTuple):
    """A convolution, batch normalization and a ReLU."""

    name: str
    outputs: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    valid: bool = False
    """If true, without padding. Otherwise the padding keeps the size."""


class Fork(NamedTuple):
    """Two units with the same input, whose outputs are joined."""

    units: tuple[Unit, Unit]


class Average(NamedTuple):
    """A 3×3 average pool that keeps the size, over those pixels only that are inside."""


class Maximum(NamedTuple):
    """A 3×3 maximum pool: with stride 1 it keeps the size, with stride 2 it has no padding."""

    stride: int


Part = Unit | Fork | Average | Maximum


class ConvNormRelu(nn.Module):
    """Module of a `Unit`."""

    def __init__(self, inputs: int, unit: Unit) -> None:
        super().__init__()
        height, width = unit.kernel
        padding = (0, 0) if unit.valid else (height // 2, width // 2)
        self.conv = nn.Conv2d(inputs, unit.outputs, unit.kernel, unit.stride, padding, bias=False)
        self.bn = FixedNorm(unit.outputs)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)), inplace=True)


class FixedNorm(nn.Module):
    """Batch normalization by the statistics of training, which are never updated."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=1e-3)


class Mixed(nn.Module):
    """An inception block: branches with the same input, joined along the channels."""

    def __init__(self, inputs: int, *branches: tuple[Part, ...]) -> None:
        super().__init__()
        self.branches = branches
        self.outputs = 0
        for branch in branches:
            width = inputs
            for part in branch:
                for unit in _units(part):
                    self.add_module(unit.name, ConvNormRelu(width, unit))
                width = sum(unit.outputs for unit in _units(part)) or width
            self.outputs += width

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self._run(branch, x) for branch in self.branches], dim=1)

    def _run(self, branch: tuple[Part, ...], x: Tensor) -> Tensor:
        for part in branch:
            match part:
                case Average():
                    x = functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
                case Maximum(stride):
                    x = functional.max_pool2d(x, 3, stride, padding=1 if stride == 1 else 0)
                case _:
                    x = torch.cat([self.get_submodule(unit.name)(x) for unit in _units(part)], dim=1)
        return x


def _units(part: Part) -> tuple[Unit, ...]:
    match part:
        case Unit():
            return (part,)
        case Fork(units):
            return units
        case _:
            return ()


class InceptionV3(nn.Module):
    """The network up to its last features. `fc` maps them to the classes.

    The state dict has the names and shapes of `weights-inception-2015-12-05-6726825d.pth`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvNormRelu(3, Unit("", 32, (3, 3), stride=2, valid=True))
        self.Conv2d_2a_3x3 = ConvNormRelu(32, Unit("", 32, (3, 3), valid=True))
        self.Conv2d_2b_3x3 = ConvNormRelu(32, Unit("", 64, (3, 3)))
        self.Conv2d_3b_1x1 = ConvNormRelu(64, Unit("", 80))
        self.Conv2d_4a_3x3 = ConvNormRelu(80, Unit("", 192, (3, 3), valid=True))
        self.Mixed_5b = _block_35(192, pooled=32)
        self.Mixed_5c = _block_35(self.Mixed_5b.outputs, pooled=64)
        self.Mixed_5d = _block_35(self.Mixed_5c.outputs, pooled=64)
        self.Mixed_6a = _shrink_to_17(self.Mixed_5d.outputs)
        self.Mixed_6b = _block_17(self.Mixed_6a.outputs, inner=128)
        self.Mixed_6c = _block_17(self.Mixed_6b.outputs, inner=160)
        self.Mixed_6d = _block_17(self.Mixed_6c.outputs, inner=160)
        self.Mixed_6e = _block_17(self.Mixed_6d.outputs, inner=192)
        self.Mixed_7a = _shrink_to_8(self.Mixed_6e.outputs)
        self.Mixed_7b = _block_8(self.Mixed_7a.outputs, Average())
        self.Mixed_7c = _block_8(self.Mixed_7b.outputs, Maximum(stride=1))
        self.fc = nn.Linear(POOL_WIDTH, NUM_CLASSES)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map images (B, 3, 299, 299) in [−1, 1) to the features of FID (B, 2048) and of sFID (B, 2023)."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = functional.max_pool2d(x, 3, 2)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = functional.max_pool2d(x, 3, 2)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x))))
        spatial = _spatial(x)
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(self.Mixed_6e(x))))
        return x.mean(dim=(2, 3)), spatial


def _spatial(mixed_6d: Tensor) -> Tensor:
    """Return ADM's `mixed_6/conv:0`[..., :7], laid out as TensorFlow does: rows, columns, channels.

    TensorFlow counts the blocks from `mixed`, so `mixed_6` is `Mixed_6d`, and its `conv` is `branch1x1`. Their
    weights are the same. Each convolution's scope has the nodes Conv2D, batchnorm, CheckNumerics and
    control_dependency. Its last node, named as the scope, is the only ReLU, and `mixed_6/join` joins the ReLUs.
    So `conv:0` is taken after the ReLU, and its channels are the first of the block's output.

    For ADM's released 256×256 samples (guided, upsampled) a port that takes them there has an sFID of 6.1405. The
    original has 6.1404. Another order of the 2023 numbers would not fit the statistics in ADM's files.
    """
    return mixed_6d[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)


def _block_35(inputs: int, pooled: int) -> Mixed:
    return Mixed(
        inputs,
        (Unit("branch1x1", 64),),
        (Unit("branch5x5_1", 48), Unit("branch5x5_2", 64, (5, 5))),
        (
            Unit("branch3x3dbl_1", 64),
            Unit("branch3x3dbl_2", 96, (3, 3)),
            Unit("branch3x3dbl_3", 96, (3, 3)),
        ),
        (Average(), Unit("branch_pool", pooled)),
    )


def _shrink_to_17(inputs: int) -> Mixed:
    return Mixed(
        inputs,
        (Unit("branch3x3", 384, (3, 3), stride=2, valid=True),),
        (
            Unit("branch3x3dbl_1", 64),
            Unit("branch3x3dbl_2", 96, (3, 3)),
            Unit("branch3x3dbl_3", 96, (3, 3), stride=2, valid=True),
        ),
        (Maximum(stride=2),),
    )


def _block_17(inputs: int, inner: int) -> Mixed:
    return Mixed(
        inputs,
        (Unit("branch1x1", 192),),
        (Unit("branch7x7_1", inner), Unit("branch7x7_2", inner, (1, 7)), Unit("branch7x7_3", 192, (7, 1))),
        (
            Unit("branch7x7dbl_1", inner),
            Unit("branch7x7dbl_2", inner, (7, 1)),
            Unit("branch7x7dbl_3", inner, (1, 7)),
            Unit("branch7x7dbl_4", inner, (7, 1)),
            Unit("branch7x7dbl_5", 192, (1, 7)),
        ),
        (Average(), Unit("branch_pool", 192)),
    )


def _shrink_to_8(inputs: int) -> Mixed:
    return Mixed(
        inputs,
        (Unit("branch3x3_1", 192), Unit("branch3x3_2", 320, (3, 3), stride=2, valid=True)),
        (
            Unit("branch7x7x3_1", 192),
            Unit("branch7x7x3_2", 192, (1, 7)),
            Unit("branch7x7x3_3", 192, (7, 1)),
            Unit("branch7x7x3_4", 192, (3, 3), stride=2, valid=True),
        ),
        (Maximum(stride=2),),
    )


def _block_8(inputs: int, pool: Average | Maximum) -> Mixed:
    return Mixed(
        inputs,
        (Unit("branch1x1", 320),),
        (
            Unit("branch3x3_1", 384),
            Fork((Unit("branch3x3_2a", 384, (1, 3)), Unit("branch3x3_2b", 384, (3, 1)))),
        ),
        (
            Unit("branch3x3dbl_1", 448),
            Unit("branch3x3dbl_2", 384, (3, 3)),
            Fork((Unit("branch3x3dbl_3a", 384, (1, 3)), Unit("branch3x3dbl_3b", 384, (3, 1)))),
        ),
        (pool, Unit("branch_pool", 192)),
    )
