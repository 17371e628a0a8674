"""KL-16 in diffusers' classes: the same numbers as plain arithmetic on LDM's tensors."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from causalfusion.vae import MAR_SCALE, import_kl16, kl16_autoencoder, ldm_name

State = dict[str, Tensor]

WIDTHS = (32, 64, 64, 96)
LATENT = 4


def ldm_shapes(widths: tuple[int, ...], latent: int) -> dict[str, tuple[int, ...]]:
    """LDM's names and shapes, written down from the layout: 2 residual blocks a level down, 3 up."""
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
            if level == end:
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


def random_state() -> State:
    """A small file's content. Queries and keys are large, or attention would be a mean whatever they are."""
    generator = torch.Generator().manual_seed(3)
    state = {}
    for name, shape in ldm_shapes(WIDTHS, LATENT).items():
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
                if level == end:
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


@pytest.fixture(scope="module")
def state() -> State:
    return random_state()


@pytest.fixture
def path(tmp_path: Path, state: State) -> Path:
    """A file laid out as `kl16.ckpt`."""
    torch.save({"model": state}, tmp_path / "kl16.ckpt")
    return tmp_path / "kl16.ckpt"


@torch.no_grad()
def test_encode_and_decode_are_ldms(path: Path, state: State) -> None:
    """An oblong image, so that rows and columns cannot be confused: 24×40 pixels, 3×5 latent pixels."""
    model, reference = import_kl16(path).double(), Ldm(state)
    generator = torch.Generator().manual_seed(4)
    image = torch.randn(2, 3, 24, 40, generator=generator, dtype=torch.float64)
    latent = torch.randn(2, LATENT, 3, 5, generator=generator, dtype=torch.float64)

    moments = model.encode(image).latent_dist.parameters
    assert moments.shape == (2, 2 * LATENT, 3, 5)
    torch.testing.assert_close(moments, reference.encode(image), rtol=0, atol=1e-10)
    assert moments.std() > 0.1

    decoded = model.decode(latent).sample
    assert decoded.shape == image.shape
    torch.testing.assert_close(decoded, reference.decode(latent), rtol=0, atol=1e-10)
    assert decoded.std() > 0.1


def test_kl16_has_the_tensors_of_its_release() -> None:
    """Each of LDM's 312 names is one of diffusers'; 66,456,019 is what MAR's own classes count."""
    names = kl16_autoencoder(device="meta").state_dict()
    shapes = ldm_shapes((128, 128, 256, 256, 512), 16)
    assert len(names) == len(shapes) == 312
    assert {ldm_name(name, levels=5) for name in names} == shapes.keys()
    assert all(math.prod(shapes[ldm_name(name, levels=5)]) == tensor.numel() for name, tensor in names.items())
    assert sum(tensor.numel() for tensor in names.values()) == 66_456_019


@pytest.mark.parametrize(
    ("name", "ldm"),
    [
        ("encoder.conv_norm_out.weight", "encoder.norm_out.weight"),
        ("encoder.down_blocks.2.resnets.0.conv_shortcut.bias", "encoder.down.2.block.0.nin_shortcut.bias"),
        ("encoder.down_blocks.4.attentions.1.to_out.0.weight", "encoder.down.4.attn.1.proj_out.weight"),
        ("encoder.mid_block.resnets.1.norm2.weight", "encoder.mid.block_2.norm2.weight"),
        ("decoder.mid_block.attentions.0.group_norm.bias", "decoder.mid.attn_1.norm.bias"),
        ("decoder.up_blocks.0.upsamplers.0.conv.weight", "decoder.up.4.upsample.conv.weight"),
        ("decoder.up_blocks.4.resnets.2.conv1.weight", "decoder.up.0.block.2.conv1.weight"),
        ("post_quant_conv.weight", "post_quant_conv.weight"),
    ],
)
def test_names(name: str, ldm: str) -> None:
    assert ldm_name(name, levels=5) == ldm


def test_the_model_is_ready_for_use(path: Path) -> None:
    """Its configuration says what to scale latents with; it stands alone when the file is overwritten."""
    before = torch.get_rng_state()
    model = import_kl16(path)
    assert torch.equal(torch.get_rng_state(), before)
    assert (model.config.scaling_factor, model.config.latent_channels) == (MAR_SCALE, LATENT) == (0.2325, 4)
    assert model.config.block_out_channels == WIDTHS
    assert not model.training
    weight = model.state_dict()["quant_conv.weight"].clone()
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert torch.equal(model.state_dict()["quant_conv.weight"], weight)


@pytest.mark.parametrize("form", ["bare", "half", "safetensors"])
def test_other_forms_of_the_file(tmp_path: Path, state: State, form: str) -> None:
    """A bare state dict, one in bfloat16 and a safetensors file give the same model, always in float32."""
    kept = {name: tensor.bfloat16() if form == "half" else tensor for name, tensor in state.items()}
    path = tmp_path / ("vae.safetensors" if form == "safetensors" else "vae.pt")
    if form == "safetensors":
        save_file(kept, path)
    else:
        torch.save(kept, path)
    for name, tensor in import_kl16(path).state_dict().items():
        source = kept[ldm_name(name, levels=len(WIDTHS))]
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, source.float().reshape(tensor.shape)), name


def rename(state: State, old: str, new: str) -> None:
    state[new] = state.pop(old)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("encoder.mid.attn_1.q.weight"), r"missing \(1\): encoder\.mid\.attn_1\.q\.weight$"),
        (
            lambda s: s.pop("encoder.down.2.block.0.norm2.weight"),
            r"missing \(1\): encoder\.down\.2\.block\.0\.norm2",
        ),
        (lambda s: s.pop("post_quant_conv.weight"), r"missing \(1\): post_quant_conv\.weight$"),
        (
            lambda s: s.update({"decoder.up.3.attn.0.q.bias": torch.zeros(96)}),
            r"unknown \(1\): decoder\.up\.3\.attn\.0\.q\.bias$",
        ),
        (lambda s: s.update({"loss.logvar": torch.zeros(())}), r"unknown \(1\): loss\.logvar$"),
        (
            lambda s: s.update({"encoder.down.1.block.1.conv2.bias": torch.zeros(7)}),
            r"wrong shape \(1\): encoder\.down\.1\.block\.1\.conv2\.bias is \(7,\), wanted \(64,\)$",
        ),
        (
            lambda s: s.update({"post_quant_conv.weight": torch.zeros(7, 4, 1, 1)}),
            r"wrong shape \(1\): post_quant_conv\.weight is \(7, 4, 1, 1\), wanted \(4, 4, 1, 1\)$",
        ),
        (
            lambda s: s.update({"encoder.mid.attn_1.v.weight": torch.zeros(96, 96)}),
            r"wrong shape \(1\): encoder\.mid\.attn_1\.v\.weight is \(96, 96\), wanted \(96, 96, 1, 1\)$",
        ),
        (
            lambda s: rename(s, "quant_conv.bias", "quant.bias"),
            r"(?s)missing \(1\): quant_conv\.bias\n.*unknown \(1\): quant\.bias$",
        ),
    ],
)
def test_faults_are_named(tmp_path: Path, state: State, change: Callable[[State], object], message: str) -> None:
    changed = dict(state)
    change(changed)
    torch.save({"model": changed}, tmp_path / "vae.ckpt")
    with pytest.raises(ValueError, match=message) as error:
        import_kl16(tmp_path / "vae.ckpt")
    assert str(tmp_path / "vae.ckpt") in str(error.value)


def test_another_models_file_is_compared_with_kl16(tmp_path: Path) -> None:
    torch.save({"model": {"blocks.0.weight": torch.zeros(2)}}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"missing \(312\): decoder\.(?s:.*) … and 300 more\n.*blocks\.0\.weight"):
        import_kl16(tmp_path / "model.pt")


@pytest.mark.parametrize("widths", [(), (32, 48), (0,), (-32,)])
def test_widths_that_the_norms_cannot_divide(widths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="multiples of 32"):
        kl16_autoencoder(widths=widths)


def test_a_latent_needs_a_channel() -> None:
    with pytest.raises(ValueError, match="latent_channels must be at least 1, got 0"):
        kl16_autoencoder(latent_channels=0)


def test_diffusers_waits_until_a_model_is_made() -> None:
    """Its import takes seconds."""
    check = "import sys, causalfusion.vae; sys.exit('diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
