"""Autoencoders of latents as `AutoencoderKL` of diffusers: MAR's KL-16 (arXiv:2406.11838), SD's (2112.10752)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mode
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from .checkpoint_file import read_state, report_mismatch

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

MAR_SCALE = 0.2325
"""Scaling factor of the MAR VAE's latents (16 channels, 1/16 of the image's side)."""
SD_SCALE = 0.18215
"""Scaling factor of the SD VAE's latents (4 channels, 1/8 of the image's side)."""


Kind = Literal["kl16", "sd"]


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """Variant of LDM's autoencoder: two residual blocks per level down, three up, attention in the middle."""

    widths: tuple[int, ...]
    latent_channels: int
    low_attention: bool
    """The encoder has attention at its last level too."""
    scale: float
    beside: str
    """Pattern of the names of training tensors that a file holds beside the weights."""


_LAYOUTS: dict[Kind, _Layout] = {
    "kl16": _Layout(
        widths=(128, 128, 256, 256, 512), latent_channels=16, low_attention=True, scale=MAR_SCALE, beside=r"(?!)"
    ),
    "sd": _Layout(
        widths=(128, 256, 512, 512),
        latent_channels=4,
        low_attention=False,
        scale=SD_SCALE,
        beside=r"loss\..*|model_ema\.(decay|num_updates)",
    ),
}
_NORM_GROUPS = 32

# Name parts of diffusers and of LDM. The middle block comes first, because its parts have names of their own.
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
# Names of diffusers, new and former. The file of SD's VAE has the former ones.
_FORMER_NAME_PARTS = (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn"))


def new_autoencoder(
    kind: Kind,
    *,
    widths: tuple[int, ...] | None = None,
    latent_channels: int | None = None,
    device: torch.device | str = "cpu",
) -> AutoencoderKL:
    """Return an autoencoder with random weights and the layout of MAR's KL-16 or of SD's f8c4.

    Encoder and decoder have attention in the middle. The encoder of MAR's has it at its last level too.

    Args:
        widths: channels of the levels, from the image's resolution down. Each level after the first halves the
            sides. Default: those of the release.
        latent_channels: channels of the latent. Default: those of the release.

    Raises:
        ValueError: levels or channels are missing, or a width is not a multiple of the 32 groups of the norms.
    """
    layout = _LAYOUTS[kind]
    widths = layout.widths if widths is None else widths
    latent_channels = layout.latent_channels if latent_channels is None else latent_channels
    if not widths or any(width < 1 or width % _NORM_GROUPS for width in widths):
        raise ValueError(f"widths must be one or more positive multiples of {_NORM_GROUPS}, got {widths}")
    if latent_channels < 1:
        raise ValueError(f"latent_channels must be at least 1, got {latent_channels}")

    # diffusers takes seconds to import, and reading encoded latents does not need it.
    from diffusers import AutoencoderKL

    last = "AttnDownEncoderBlock2D" if layout.low_attention else "DownEncoderBlock2D"
    with torch.device(device):
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * (len(widths) - 1) + (last,),
            up_block_types=("UpDecoderBlock2D",) * len(widths),
            block_out_channels=widths,
            layers_per_block=2,
            latent_channels=latent_channels,
            norm_num_groups=_NORM_GROUPS,
            sample_size=256,
            scaling_factor=layout.scale,
        )


def import_vae(path: Path) -> AutoencoderKL:
    """Return the autoencoder in a file of MAR's or SD's, in float32 on the CPU and in evaluation mode.

    `path` holds a state dict, or one under "model" or "state_dict". Names are LDM's, as in `kl16.ckpt` and
    `vae-ft-mse-840000-ema-pruned.safetensors`, or diffusers', as in `diffusion_pytorch_model.safetensors`. Only
    MAR's layout has a level with attention. Shapes give the widths and the latent channels. Training tensors beside
    SD's weights (`loss.…`, counters of the EMA) are left out. Files do not store the scale, so
    `config.scaling_factor` is the release's. Multiply encoded latents by it, and divide by it before decoding.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file needs pickled code, or its tensors are not those of the layout. They are named.
    """
    state: Mapping[str, Tensor] = read_state(path, prefer=("model", "state_dict"))
    kind: Kind = "kl16" if any(re.match(r"encoder\.down(_blocks)?\.\d+\.att", name) for name in state) else "sd"
    beside = _LAYOUTS[kind].beside
    state = {name: tensor for name, tensor in state.items() if not re.fullmatch(beside, name)}
    # The meta device saves the time of random weights and leaves the caller's random state as it is.
    model = new_autoencoder(
        kind, widths=_widths(state) or None, latent_channels=_latent_channels(state), device="meta"
    )
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    levels = len(model.config.block_out_channels)
    of_ldm = not any(".mid_block." in name for name in state)
    former = any(".mid_block.attentions.0.query." in name for name in state)
    names = {
        name: ldm_name(name, levels=levels) if of_ldm else _replace(name, _FORMER_NAME_PARTS if former else ())
        for name in shapes
    }
    report_mismatch(
        # The matrices are the attention's projections, which LDM writes as convolutions of 1×1.
        {names[name]: (*shape, 1, 1) if of_ldm and len(shape) == 2 else shape for name, shape in shapes.items()},
        {name: tuple(tensor.shape) for name, tensor in state.items()},
        source=path,
    )
    tensors = {name: state[names[name]].reshape(shape) for name, shape in shapes.items()}
    model.load_state_dict({name: x.to(torch.float32, copy=True) for name, x in tensors.items()}, assign=True)
    return model.eval()


def decode_latents(vae: Any, latents: Tensor) -> Tensor:
    """Map latents in the model's scale, (B, channels, h, w), to images (B, 3, H, W) in about [−1, 1].

    Images are decoded one by one, because a decoder's activations take far more memory than its weights.
    """
    unscaled = (latents / vae.config.scaling_factor).to(vae.device, vae.dtype)
    return torch.cat([vae.decode(one[None]).sample for one in unscaled])


def encode_images(vae: Any, images: Tensor) -> Tensor:
    """Map images (B, 3, H, W) in [−1, 1] to latents in the model's scale: the mean of a posterior, one by one."""
    parts = []
    for one in images.to(vae.device, vae.dtype):
        encoded = vae.encode(one[None])
        parts.append(encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mean)
    return torch.cat(parts) * float(vae.config.scaling_factor)


def vae_scale_factor(vae: Any) -> int:
    """Return the pixels along a side for each latent pixel of an `AutoencoderKL` or `AutoencoderTiny`."""
    config = vae.config
    levels = config.get("block_out_channels") or config.encoder_block_out_channels
    return int(2 ** (len(levels) - 1))


def ldm_name(name: str, *, levels: int) -> str:
    """Return LDM's name of the tensor `name` of a diffusers `AutoencoderKL` with this number of levels.

    LDM counts the decoder's levels from the image, diffusers from the latent.
    """
    name = re.sub(r"\bup_blocks\.(\d+)", lambda match: f"up.{levels - 1 - int(match[1])}", name)
    return _replace(name, _NAME_PARTS)


def _replace(name: str, parts: tuple[tuple[str, str], ...]) -> str:
    for old, new in parts:
        name = name.replace(old, new)
    return name


def _widths(state: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Return the widths of the encoder's levels that the shapes give."""
    found: dict[int, list[int]] = {}
    block = re.compile(r"encoder\.down(?:_blocks)?\.(\d+)\.(?:block|resnets)\.\d+\.(?:conv1|norm2|conv2)\.\w+")
    for name, tensor in state.items():
        match = block.fullmatch(name)
        if match and tensor.ndim:
            found.setdefault(int(match[1]), []).append(tensor.shape[0])
    # The width of most tensors of a level: the error then names a tensor of a wrong shape.
    return tuple(mode(found[level]) for level in sorted(found))


def _latent_channels(state: Mapping[str, Tensor]) -> int | None:
    """Return the latent's channels, or None if no tensor gives them."""
    axes = {"post_quant_conv.weight": 0, "post_quant_conv.bias": 0, "decoder.conv_in.weight": 1}
    found = [state[name].shape[axis] for name, axis in axes.items() if name in state and state[name].ndim > axis]
    return mode(found) if found else None
