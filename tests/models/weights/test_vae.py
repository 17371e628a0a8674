"""KL-16 and SD's autoencoder in diffusers' classes: the same numbers as plain arithmetic on LDM's tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models.ldm_vae import LATENT, WIDTHS, Ldm, State, ldm_shapes, random_state

from causalfusion.weights.vae import (
    MAR_SCALE,
    SD_SCALE,
    decode_latents,
    import_vae,
    ldm_name,
    new_autoencoder,
)


@pytest.fixture(scope="module")
def state() -> State:
    return random_state(low_attention=True)


@pytest.fixture
def path(tmp_path: Path, state: State) -> Path:
    """A file laid out as `kl16.ckpt`."""
    torch.save({"model": state}, tmp_path / "kl16.ckpt")
    return tmp_path / "kl16.ckpt"


@pytest.fixture(scope="module")
def sd_state() -> State:
    return random_state(low_attention=False)


@torch.no_grad()
def check_is_ldms(model: Any, state: State) -> None:
    """Compare on an oblong image, so that rows and columns cannot be confused: 24×40 pixels, 3×5 latent pixels."""
    model, reference = model.double(), Ldm(state)
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


def test_encode_and_decode_are_ldms(path: Path, state: State) -> None:
    check_is_ldms(import_vae(path), state)


def test_kl16_has_the_tensors_of_its_release() -> None:
    """Each of LDM's 312 names is one of diffusers'; 66,456,019 is what MAR's own classes count."""
    names = new_autoencoder("kl16", device="meta").state_dict()
    shapes = ldm_shapes((128, 128, 256, 256, 512), 16, low_attention=True)
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
    model = import_vae(path)
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
    for name, tensor in import_vae(path).state_dict().items():
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
        import_vae(tmp_path / "vae.ckpt")
    assert str(tmp_path / "vae.ckpt") in str(error.value)


def test_another_models_file_is_compared_with_sds(tmp_path: Path) -> None:
    torch.save({"model": {"blocks.0.weight": torch.zeros(2)}}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"missing \(248\): decoder\.(?s:.*) … and 236 more\n.*blocks\.0\.weight"):
        import_vae(tmp_path / "model.pt")


# SD's autoencoder


def former(name: str) -> str:
    """What diffusers called a tensor of attention before; SD's file has these names."""
    for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        name = name.replace(f"mid_block.attentions.0.{new}.", f"mid_block.attentions.0.{old}.")
    return name


def write_sd(folder: Path, state: State, form: str) -> Path:
    """Write SD's autoencoder as the files of it that are about."""
    ours = new_autoencoder("sd", widths=WIDTHS, latent_channels=LATENT, device="meta").state_dict()
    by_diffusers = {
        name: state[ldm_name(name, levels=len(WIDTHS))].reshape(tensor.shape) for name, tensor in ours.items()
    }
    path = folder / ("vae.ckpt" if form == "ckpt" else "vae.safetensors")
    match form:
        case "ckpt":
            torch.save({"state_dict": state, "epoch": 3}, path)
        case "ldm":
            save_file(state, path)
        case "diffusers":
            save_file(by_diffusers, path)
        case "former":
            save_file({former(name): tensor for name, tensor in by_diffusers.items()}, path)
    return path


@pytest.mark.parametrize("form", ["ckpt", "ldm", "diffusers", "former"])
def test_sds_files_are_ldms_arithmetic(tmp_path: Path, sd_state: State, form: str) -> None:
    path = write_sd(tmp_path, sd_state, form)
    model = import_vae(path)
    assert (model.config.scaling_factor, model.config.latent_channels) == (SD_SCALE, LATENT) == (0.18215, 4)
    assert model.config.block_out_channels == WIDTHS
    assert not model.training
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    check_is_ldms(model, sd_state)


def test_sd_is_as_diffusers_converts_it(tmp_path: Path, sd_state: State) -> None:
    """The names and shapes come out as in diffusers' own conversion of LDM's files, which has another table."""
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    model = import_vae(write_sd(tmp_path, sd_state, "ldm"))
    theirs = convert_ldm_vae_checkpoint(dict(sd_state), model.config)
    ours = model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_sd_has_the_tensors_of_its_release() -> None:
    """248 tensors of 83,653,863 numbers, and the configuration's widths, as they are published."""
    model = new_autoencoder("sd", device="meta")
    names = model.state_dict()
    shapes = ldm_shapes((128, 256, 512, 512), 4, low_attention=False)
    assert len(names) == len(shapes) == 248
    assert {ldm_name(name, levels=4) for name in names} == shapes.keys()
    assert sum(tensor.numel() for tensor in names.values()) == 83_653_863
    assert sum(math.prod(shape) for shape in shapes.values()) == 83_653_863


def test_what_training_left_beside_sds_weights(tmp_path: Path, sd_state: State) -> None:
    """The discriminator and the EMA's counters go; an EMA's own copy of the weights is not passed over."""
    beside = {"loss.logvar": torch.zeros(()), "loss.discriminator.main.0.weight": torch.zeros(2)}
    counters = {"model_ema.decay": torch.ones(()), "model_ema.num_updates": torch.ones((), dtype=torch.int32)}
    save_file({**sd_state, **beside, **counters}, tmp_path / "vae.safetensors")
    check_is_ldms(import_vae(tmp_path / "vae.safetensors"), sd_state)
    save_file({**sd_state, "model_ema.decoderconv_inbias": torch.zeros(2)}, tmp_path / "vae.safetensors")
    with pytest.raises(ValueError, match=r"unknown \(1\): model_ema\.decoderconv_inbias$"):
        import_vae(tmp_path / "vae.safetensors")


@pytest.mark.parametrize(
    ("form", "name", "tensor", "message"),
    [
        ("ldm", "encoder.mid.attn_1.q.weight", None, r"missing \(1\): encoder\.mid\.attn_1\.q\.weight$"),
        ("ldm", "decoder.mid.attn_1.k.weight", (96, 96), r"k\.weight is \(96, 96\), wanted \(96, 96, 1, 1\)$"),
        (
            "diffusers",
            "decoder.mid_block.attentions.0.to_k.weight",
            (96, 96, 1, 1),
            r"to_k\.weight is \(96, 96, 1, 1\), wanted \(96, 96\)$",
        ),
        (
            "former",
            "encoder.mid_block.attentions.0.value.bias",
            None,
            r"missing \(1\): encoder\.mid_block\.attentions\.0\.value\.bias$",
        ),
        ("diffusers", "decoder.more", (1,), r"unknown \(1\): decoder\.more$"),
    ],
)
def test_faults_of_sds_files_are_named(
    tmp_path: Path, sd_state: State, form: str, name: str, tensor: tuple[int, ...] | None, message: str
) -> None:
    path = write_sd(tmp_path, sd_state, form)
    state = load_file(path)
    if tensor is None:
        del state[name]
    else:
        state[name] = torch.zeros(tensor)
    save_file(state, path)
    with pytest.raises(ValueError, match=message):
        import_vae(path)


def test_a_file_tells_which_autoencoder_it_is(tmp_path: Path, path: Path, state: State, sd_state: State) -> None:
    """KL-16 and SD's, whatever the names."""
    model = import_vae(path)
    check_is_ldms(model, state)
    model.float().save_pretrained(tmp_path)
    renamed = import_vae(tmp_path / "diffusion_pytorch_model.safetensors")
    assert renamed.config.scaling_factor == MAR_SCALE
    check_is_ldms(renamed, state)
    for form in ("ckpt", "former"):
        sd = write_sd(tmp_path, sd_state, form)
        assert import_vae(sd).config.scaling_factor == SD_SCALE
        check_is_ldms(import_vae(sd), sd_state)


@torch.no_grad()
def test_latents_are_decoded_in_the_models_scale(path: Path, state: State) -> None:
    model = import_vae(path).double()
    latents = torch.randn(2, LATENT, 3, 5, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    images = decode_latents(model, latents)
    expected = Ldm(state).decode(latents / 0.2325)
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-10)


# Sizes


@pytest.mark.parametrize("widths", [(), (32, 48), (0,), (-32,)])
def test_widths_that_the_norms_cannot_divide(widths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="multiples of 32"):
        new_autoencoder("kl16", widths=widths)
    with pytest.raises(ValueError, match="multiples of 32"):
        new_autoencoder("sd", widths=widths)


def test_a_latent_needs_a_channel() -> None:
    with pytest.raises(ValueError, match="latent_channels must be at least 1, got 0"):
        new_autoencoder("kl16", latent_channels=0)
