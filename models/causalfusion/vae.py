"""Autoencoders of latents: MAR's KL-16 as diffusers' `AutoencoderKL` (arXiv:2406.11838)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from statistics import mode
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .checkpoint_file import read_state, report_mismatch

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

MAR_SCALE = 0.2325
"""Factor of the MAR VAE's latents (16 channels, 1/16 of the image's side)."""
SD_SCALE = 0.18215
"""Factor of the SD VAE's latents (4 channels, 1/8 of the image's side)."""

_KL16_WIDTHS = (128, 128, 256, 256, 512)
_KL16_LATENT_CHANNELS = 16
_NORM_GROUPS = 32

# Parts of names, diffusers' and LDM's. The middle block comes first: its parts have names of their own.
_NAME_PARTS = (
    ("mid_block.resnets.0", "mid.block_1"),
    ("mid_block.resnets.1", "mid.block_2"),
    ("mid_block.attentions.0", "mid.attn_1"),
    ("down_blocks", "down"),
    ("resnets", "block"),
    ("attentions", "attn"),
    ("downsamplers.0", "downsample"),
    ("upsamplers.0", "upsample"),
    ("conv_shortcut", "nin_shortcut"),
    ("conv_norm_out", "norm_out"),
    ("group_norm", "norm"),
    ("to_q", "q"),
    ("to_k", "k"),
    ("to_v", "v"),
    ("to_out.0", "proj_out"),
)


def kl16_autoencoder(
    *,
    widths: tuple[int, ...] = _KL16_WIDTHS,
    latent_channels: int = _KL16_LATENT_CHANNELS,
    device: torch.device | str = "cpu",
) -> AutoencoderKL:
    """Return an autoencoder with MAR's layout and new random weights; the defaults are the sizes of its KL-16.

    `widths` are the channels of the levels, from the image's resolution down; each level after the first halves
    the sides. The encoder has attention at its last level and in the middle, the decoder in the middle only.

    Raises:
        ValueError: there is no level or channel, or a width that the 32 groups of the norms do not divide.
    """
    if not widths or any(width < 1 or width % _NORM_GROUPS for width in widths):
        raise ValueError(f"widths must be one or more positive multiples of {_NORM_GROUPS}, got {widths}")
    if latent_channels < 1:
        raise ValueError(f"latent_channels must be at least 1, got {latent_channels}")

    # diffusers takes seconds to import; who reads encoded latents never needs it.
    from diffusers import AutoencoderKL

    levels = len(widths)
    with torch.device(device):
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * (levels - 1) + ("AttnDownEncoderBlock2D",),
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=widths,
            layers_per_block=2,
            latent_channels=latent_channels,
            norm_num_groups=_NORM_GROUPS,
            sample_size=256,
            scaling_factor=MAR_SCALE,
        )


def import_kl16(path: Path) -> AutoencoderKL:
    """Return the autoencoder in MAR's `kl16.ckpt`, in float32 on the CPU and in evaluation mode.

    `path` holds {"model": state dict} or the state dict itself, with LDM's names; its shapes give the widths and
    the latent channels. Multiply encoded latents by `config.scaling_factor`, and divide by it before decoding.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file needs pickled code, or its tensors are not those of MAR's layout; they are named.
    """
    state = read_state(path, prefer=("model",))
    widths = _widths(state)
    # On the meta device: no time goes into random weights, and the caller's random state stays as it is.
    model = kl16_autoencoder(widths=widths, latent_channels=_latent_channels(state), device="meta")

    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    ldm_names = {name: ldm_name(name, levels=len(widths)) for name in shapes}
    report_mismatch(
        # The matrices are the attention's projections, which LDM writes as convolutions of 1×1.
        {ldm_names[name]: shape if len(shape) != 2 else (*shape, 1, 1) for name, shape in shapes.items()},
        {name: tuple(tensor.shape) for name, tensor in state.items()},
        source=path,
    )
    tensors = {name: state[ldm_names[name]].reshape(shape) for name, shape in shapes.items()}
    model.load_state_dict({name: x.to(torch.float32, copy=True) for name, x in tensors.items()}, assign=True)
    return model.eval()


def ldm_name(name: str, *, levels: int) -> str:
    """Return LDM's name of a tensor that diffusers' `AutoencoderKL` of so many levels calls `name`.

    LDM counts the decoder's levels from the image, diffusers from the latent.
    """
    name = re.sub(r"\bup_blocks\.(\d+)", lambda match: f"up.{levels - 1 - int(match[1])}", name)
    for theirs, ldm in _NAME_PARTS:
        name = name.replace(theirs, ldm)
    return name


def _widths(state: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Return the widths of the encoder's levels, or KL-16's where there are none."""
    found: dict[int, list[int]] = {}
    for name, tensor in state.items():
        match = re.fullmatch(r"encoder\.down\.(\d+)\.block\.\d+\.(?:conv1|norm2|conv2)\.\w+", name)
        if match and tensor.ndim:
            found.setdefault(int(match[1]), []).append(tensor.shape[0])
    # What most tensors of a level say: one of a wrong shape is then what the error names.
    return tuple(mode(found[level]) for level in sorted(found)) or _KL16_WIDTHS


def _latent_channels(state: Mapping[str, Tensor]) -> int:
    """Return the latent's channels, or KL-16's where no tensor says."""
    axes = {"post_quant_conv.weight": 0, "post_quant_conv.bias": 0, "decoder.conv_in.weight": 1}
    found = [state[name].shape[axis] for name, axis in axes.items() if name in state and state[name].ndim > axis]
    return mode(found) if found else _KL16_LATENT_CHANNELS
