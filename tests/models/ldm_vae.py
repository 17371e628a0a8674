"""LDM's autoencoder written out: the names and shapes of its tensors, and its arithmetic in float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

State = dict[str, Tensor]

WIDTHS = (32, 64, 64, 96)
LATENT = 4


def ldm_shapes(widths: tuple[int, ...], latent: int, *, low_attention: bool) -> dict[str, tuple[int, ...]]:
    """LDM's names and shapes, written down from the layout: 2 residual blocks a level down, 3 up.

    MAR's has attention at the encoder's last level too (`low_attention`), SD's has not.
    """
    shapes: dict[str, tuple[int, ...]] = {}

    def norm(name: str, channels: int) -> None:
        shapes.update({f"{name}.weight": (channels,), f"{name}.bias": (channels,)})

    def conv(name: str, inputs: int, outputs: int, side: int) -> None:
        shapes.update({f"{name}.weight": (outputs, inputs, side, side), f"{name}.bias": (outputs,)})

    def resnet(name: str, inputs: int, outputs: int) -> None:
        norm(f"{name}.norm1", inputs)
        conv(f"{name}.conv1", inputs, outputs, 3)
        norm(f"{name}.norm2", outputs)
        conv(f"{name}.conv2", outputs, outputs, 3)
        if inputs != outputs:
            conv(f"{name}.nin_shortcut", inputs, outputs, 1)

    def attention(name: str, channels: int) -> None:
        norm(f"{name}.norm", channels)
        for part in ("q", "k", "v", "proj_out"):
            conv(f"{name}.{part}", channels, channels, 1)

    def half(name: str, inputs: int, first: int, last: int, outputs: int) -> None:
        conv(f"{name}.conv_in", inputs, first, 3)
        resnet(f"{name}.mid.block_1", widths[-1], widths[-1])
        attention(f"{name}.mid.attn_1", widths[-1])
        resnet(f"{name}.mid.block_2", widths[-1], widths[-1])
        norm(f"{name}.norm_out", last)
        conv(f"{name}.conv_out", last, outputs, 3)

    half("encoder", 3, widths[0], widths[-1], 2 * latent)
    half("decoder", latent, widths[-1], widths[0], 3)
    end = len(widths) - 1
    for level, width in enumerate(widths):
        for block in range(2):
            before = widths[max(level - 1, 0)] if block == 0 else width
            resnet(f"encoder.down.{level}.block.{block}", before, width)
            if low_attention and level == end:
                attention(f"encoder.down.{level}.attn.{block}", width)
        for block in range(3):
            before = widths[min(level + 1, end)] if block == 0 else width
            resnet(f"decoder.up.{level}.block.{block}", before, width)
        if level < end:
            conv(f"encoder.down.{level}.downsample.conv", width, width, 3)
        if level > 0:
            conv(f"decoder.up.{level}.upsample.conv", width, width, 3)
    conv("quant_conv", 2 * latent, 2 * latent, 1)
    conv("post_quant_conv", latent, latent, 1)
    return shapes


def random_state(*, low_attention: bool) -> State:
    """A small file's content. Queries and keys are large, or attention would be a mean whatever they are."""
    generator = torch.Generator().manual_seed(3)
    state = {}
    for name, shape in ldm_shapes(WIDTHS, LATENT, low_attention=low_attention).items():
        noise = torch.randn(shape, generator=generator)
        if len(shape) == 1:
            state[name] = 0.3 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
        else:
            gain = 2.0 if name.endswith(("q.weight", "k.weight")) else 1.0
            state[name] = gain * noise / math.sqrt(math.prod(shape[1:]))
    return state


class Ldm:
    """LDM's autoencoder in float64, as functions of a state with LDM's names."""

    def __init__(self, state: State) -> None:
        self.state = {name: tensor.double() for name, tensor in state.items()}

    def conv(self, x: Tensor, name: str, *, stride: int = 1, padding: int | None = None) -> Tensor:
        weight = self.state[f"{name}.weight"]
        around = weight.shape[-1] // 2 if padding is None else padding
        return F.conv2d(x, weight, self.state[f"{name}.bias"], stride=stride, padding=around)

    def norm(self, x: Tensor, name: str) -> Tensor:
        groups = x.reshape(x.shape[0], 32, -1)
        centred = groups - groups.mean(-1, keepdim=True)
        unit = (centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()).reshape(x.shape)
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        return unit * weight[:, None, None] + bias[:, None, None]

    def swish_norm(self, x: Tensor, name: str) -> Tensor:
        y = self.norm(x, name)
        return y / (1 + (-y).exp())

    def resnet(self, x: Tensor, name: str) -> Tensor:
        y = self.conv(self.swish_norm(x, f"{name}.norm1"), f"{name}.conv1")
        y = self.conv(self.swish_norm(y, f"{name}.norm2"), f"{name}.conv2")
        return y + (self.conv(x, f"{name}.nin_shortcut") if f"{name}.nin_shortcut.weight" in self.state else x)

    def attention(self, x: Tensor, name: str) -> Tensor:
        """One head over all pixels; it moves values, so that the tests are sure to see it."""
        y = self.norm(x, f"{name}.norm")
        q, k, v = (self.conv(y, f"{name}.{part}").flatten(2) for part in "qkv")
        weights = (torch.einsum("bci,bcj->bij", q, k) / math.sqrt(x.shape[1])).softmax(-1)
        assert weights.max() > 0.5
        seen = torch.einsum("bij,bcj->bci", weights, v).reshape(x.shape)
        return x + self.conv(seen, f"{name}.proj_out")

    def middle(self, x: Tensor, half: str) -> Tensor:
        x = self.attention(self.resnet(x, f"{half}.mid.block_1"), f"{half}.mid.attn_1")
        return self.resnet(x, f"{half}.mid.block_2")

    def encode(self, x: Tensor) -> Tensor:
        """Return mean and log variance, one after the other."""
        x = self.conv(x, "encoder.conv_in")
        end = len(WIDTHS) - 1
        for level in range(end + 1):
            for block in range(2):
                x = self.resnet(x, f"encoder.down.{level}.block.{block}")
                if f"encoder.down.{level}.attn.{block}.q.weight" in self.state:
                    x = self.attention(x, f"encoder.down.{level}.attn.{block}")
            if level < end:
                below_and_right = F.pad(x, (0, 1, 0, 1))
                x = self.conv(below_and_right, f"encoder.down.{level}.downsample.conv", stride=2, padding=0)
        x = self.swish_norm(self.middle(x, "encoder"), "encoder.norm_out")
        return self.conv(self.conv(x, "encoder.conv_out"), "quant_conv")

    def decode(self, z: Tensor) -> Tensor:
        x = self.middle(self.conv(self.conv(z, "post_quant_conv"), "decoder.conv_in"), "decoder")
        for level in reversed(range(len(WIDTHS))):
            for block in range(3):
                x = self.resnet(x, f"decoder.up.{level}.block.{block}")
            if level > 0:
                x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
                x = self.conv(x, f"decoder.up.{level}.upsample.conv")
        return self.conv(self.swish_norm(x, "decoder.norm_out"), "decoder.conv_out")
