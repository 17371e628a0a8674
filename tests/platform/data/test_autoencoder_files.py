"""Files of autoencoders: the same whatever form they have, one hash, and what is said of those that are none."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tests.platform.data.tiny_vaes import moments_of, new_kl
from torch import Tensor

from causalfusion.weights.vae import Kind, ldm_name, new_autoencoder
from causalfusion_platform.config.errors import UserError
from causalfusion_platform.data.autoencoder import open_autoencoder, open_encoder

WEIGHTS = "diffusion_pytorch_model.safetensors"


def in_ldms_names(vae: Any) -> dict[str, Tensor]:
    levels = len(vae.config.block_out_channels)
    return {
        ldm_name(name, levels=levels): tensor[..., None, None].clone() if tensor.ndim == 2 else tensor
        for name, tensor in vae.state_dict().items()
    }


@pytest.mark.parametrize(("kind", "scale", "downsampling"), [("kl16", 0.2325, 2), ("sd", 0.18215, 2)])
def test_every_form_of_an_autoencoder_is_the_same(
    tmp_path: Path, images: NDArray[np.uint8], kind: Kind, scale: float, downsampling: int
) -> None:
    """A folder, and single files in diffusers' and in LDM's names: one hash, and the same latents to the bit."""
    torch.manual_seed(0)
    vae = new_autoencoder(kind, widths=(32, 32), latent_channels=2).eval()
    vae.save_pretrained(tmp_path / "folder")
    save_file(vae.state_dict(), tmp_path / "single.safetensors")
    save_file(in_ldms_names(vae), tmp_path / "ldm.safetensors")
    torch.save({"model": in_ldms_names(vae)}, tmp_path / "kl16.ckpt")
    torch.save({"state_dict": in_ldms_names(vae)}, tmp_path / "vae.ckpt")
    encoders = [
        open_encoder(str(tmp_path / name))
        for name in (
            "folder",
            f"folder/{WEIGHTS}",
            "single.safetensors",
            "ldm.safetensors",
            "kl16.ckpt",
            "vae.ckpt",
        )
    ]
    expected = moments_of(vae, images)
    first = encoders[0].encode(images)
    for encoder in encoders:
        assert (encoder.name, encoder.scale, encoder.downsampling) == ("AutoencoderKL", scale, downsampling)
        assert encoder.weights_sha256 == encoders[0].weights_sha256
        for ours, again, theirs in zip(encoder.encode(images), first, expected, strict=True):
            assert ours is not None
            assert again is not None
            assert torch.equal(ours, again)
            torch.testing.assert_close(ours, scale * theirs, rtol=1e-5, atol=1e-6)


def test_the_configuration_beside_a_file_says_its_scale(tmp_path: Path) -> None:
    """As SDXL's, which has SD's layout and another scale."""
    vae = new_autoencoder("sd", widths=(32,))
    vae.register_to_config(scaling_factor=0.13025)
    vae.save_pretrained(tmp_path)
    assert open_encoder(str(tmp_path / WEIGHTS)).scale == 0.13025
    (tmp_path / "config.json").unlink()
    assert open_encoder(str(tmp_path / WEIGHTS)).scale == 0.18215


def test_the_hash_is_of_names_types_shapes_and_bytes(kl_folder: Path, tmp_path: Path) -> None:
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(kl_folder / WEIGHTS).items()):
        digest.update(f"{name} torch.float32 {tuple(tensor.shape)}\n".encode() + tensor.numpy().tobytes())
    original = open_encoder(str(kl_folder)).weights_sha256
    assert original == digest.hexdigest()

    vae = new_kl()
    with torch.no_grad():
        bias = vae.state_dict()["encoder.conv_in.bias"]
        bias[3] = torch.nextafter(bias[3], torch.tensor(9.0))
    vae.save_pretrained(tmp_path)
    assert open_encoder(str(tmp_path)).weights_sha256 not in (original, None)


def test_a_folder_in_half_precision_is_used_in_float32(tmp_path: Path, images: NDArray[np.uint8]) -> None:
    vae = new_kl().half()
    vae.save_pretrained(tmp_path)
    mean, _ = open_encoder(str(tmp_path)).encode(images)
    torch.testing.assert_close(mean, 0.5 * moments_of(vae.float(), images)[0], rtol=1e-5, atol=1e-6)


def test_the_autoencoder_of_a_model(kl_folder: Path) -> None:
    assert open_autoencoder(kl_folder, 4).latent_shape(32) == (4, 4, 4)
    assert open_autoencoder(str(kl_folder), None).name == "AutoencoderKL"
    assert open_autoencoder(Path("identity"), None).latent_shape(8) == (3, 8, 8)
    with pytest.raises(UserError, match="has 4 latent channels, the model 16"):
        open_autoencoder(kl_folder, 16)
    for none in (None, "identity"):
        with pytest.raises(UserError, match="latents of 4 channels need an autoencoder to become images: --vae"):
            open_autoencoder(none, 4)


# What is said instead


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        open_encoder(str(path))
    return str(caught.value)


def test_what_is_not_there_can_be_fetched(own_folder: Path) -> None:
    """Three sources by their public names, and where to put them; a name on a hub is not looked up."""
    for name in ("vae/sd", "stabilityai/sd-vae-ft-mse", "vae/kl16.ckpt"):
        message = refusal(Path(name))
        assert message.startswith(f"no autoencoder in {name}: there is no such file or folder\n")
        assert f"put them at {name}\n" in message
        for source in (
            "stabilityai/sd-vae-ft-mse,",
            "vae-ft-mse-840000-ema-pruned.safetensors",
            "kl16.ckpt, linked in the README of LTH14/mar",
            "madebyollin/taesd",
            WEIGHTS,
        ):
            assert source in message
    (own_folder / "empty").mkdir()
    assert f"no autoencoder in {own_folder / 'empty'}: there is no config.json\n" in refusal(own_folder / "empty")


def change_config(**values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **values}))

    return change


def change_weights(change_state: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        state = load_file(folder / WEIGHTS)
        change_state(state)
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})

    return change


def cut_in_half(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (lambda folder: (folder / WEIGHTS).unlink(), f"there is no {WEIGHTS}\n"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is not JSON: "),
        (lambda folder: (folder / "config.json").write_text("[" * 200_000), "config.json is not JSON: "),
        (lambda folder: (folder / "config.json").write_text("[]"), "config.json is of a list; allowed: Autoenc"),
        (change_config(_class_name="UNet2DModel"), "of a UNet2DModel; allowed: AutoencoderKL, AutoencoderTiny"),
        (change_config(down_block_types=["Strange"] * 4), "Strange"),
        (change_config(block_out_channels=[16, 8, 16, 16]), "size mismatch for encoder."),
        (change_config(shift_factor=0.1), "has shift_factor 0.1; allowed: latents that are only scaled"),
        (change_config(latents_mean=[0.0, 0.1, 0.2, 0.3]), "has latents_mean [0.0, 0.1, 0.2, 0.3]; allowed"),
        (change_config(scaling_factor=0.0), "has scaling_factor 0.0; allowed: numbers above 0"),
        (change_config(scaling_factor=math.inf), "has scaling_factor inf; allowed: numbers above 0"),
        (change_config(scaling_factor=10**400), "; allowed: numbers above 0"),
        (change_config(scaling_factor=None), "has scaling_factor None; allowed: numbers above 0"),
        (cut_in_half, "Unable to load weights"),
        (change_weights(lambda state: state.pop("encoder.conv_in.bias")), "there is no encoder.conv_in.bias\n"),
        (
            change_weights(lambda state: state.update({"encoder.more": torch.zeros(2)})),
            "its configuration has no encoder.more\n",
        ),
    ],
)
def test_damaged_folders(tmp_path: Path, damage: Callable[[Path], object], part: str) -> None:
    new_kl().save_pretrained(tmp_path)
    damage(tmp_path)
    message = refusal(tmp_path)
    assert part in message
    assert f"in {tmp_path}" in message


def test_images_that_are_not_rgb(tmp_path: Path) -> None:
    new_kl(in_channels=1, out_channels=1).save_pretrained(tmp_path)
    assert "maps 1 to 1 channels; allowed: RGB images, 3 to 3" in refusal(tmp_path)


def test_files_of_something_else(tmp_path: Path) -> None:
    """The file's own fault comes first, then what could be had instead."""
    save_file({"blocks.0.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    message = refusal(tmp_path / "model.safetensors")
    assert message.startswith(f"no autoencoder: {tmp_path / 'model.safetensors'} does not hold")
    assert "unknown (1): blocks.0.weight\n" in message
    assert "madebyollin/taesd" in message
    torch.save({"state_dict": {}}, tmp_path / "vae.ckpt")
    (tmp_path / "vae.ckpt").write_bytes((tmp_path / "vae.ckpt").read_bytes()[:-50])
    assert "is damaged, or torch.save did not write it" in refusal(tmp_path / "vae.ckpt")
