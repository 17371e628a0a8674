"""Opening of autoencoders on this machine. Nothing is downloaded."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

from causalfusion.weights.vae import import_vae

from ...config.errors import UserError
from ..manifest import AutoencoderId
from .encoder import Autoencoder, Encoder, Identity

_CONFIG, _WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
_CLASSES = ("AutoencoderKL", "AutoencoderTiny")
_PIXEL_CHANNELS = (1, 3)
# Of float32. Integers of JSON may be larger than any float.
_LARGEST_SCALE = 3.4e38


def open_encoder(spec: Path | str, device: str = "cpu", *, bf16: bool = False) -> Encoder:
    """Return the autoencoder that `spec` names, in float32.

    Args:
        spec: `identity` (latents are the pixels), a folder of a diffusers `AutoencoderKL` or `AutoencoderTiny`, or
            a file that `causalfusion.weights.vae.import_vae` reads: MAR's `kl16.ckpt`, or SD's VAE with LDM's or
            diffusers' names of tensors.
        bf16: encode under autocast to bfloat16.

    Raises:
        UserError: the autoencoder is missing or damaged, or its latents do not fit `Encoder`.
    """
    if str(spec) == "identity":
        return Identity()
    path = Path(spec)
    if path.name == _WEIGHTS and (path.parent / _CONFIG).is_file():
        path = path.parent  # the scale is in its configuration only
    if path.is_dir():
        vae = _read_folder(path)
    elif path.is_file():
        try:
            vae = import_vae(path)
        except (OSError, ValueError) as error:
            raise UserError(f"no autoencoder: {error}\n  {_known(path)}") from error
    else:
        raise UserError(f"no autoencoder in {path}: there is no such file or folder\n  {_known(path)}")
    _check(vae.config, path)
    return Autoencoder(vae.to(device).eval(), bf16=bf16)


def open_autoencoder(
    path: Path | str | None, channels: int | None, device: str = "cpu", *, made: AutoencoderId | None = None
) -> Encoder:
    """Return the autoencoder of a model's latents.

    Args:
        path: as in `open_encoder`. None or `identity`: latents of 1 or 3 channels are pixels.
        channels: channels of the latents. None: those of the autoencoder.
        made: the autoencoder that made the latents of training. None: not known, and not compared.

    Raises:
        UserError: an autoencoder is needed and not given, is missing, has other latents, or is another than `made`.
    """
    if path is None or str(path) == "identity":
        if channels is not None and channels not in _PIXEL_CHANNELS:
            raise UserError(
                f"latents of {channels} channels need an autoencoder to become images: --vae FOLDER\n"
                f"  MAR's KL-16 (16 channels): causalfusion weights import kl16.ckpt FOLDER; "
                f"SD's (4 channels): a diffusers AutoencoderKL folder"
            )
        encoder: Encoder = Identity(channels or 3)
    else:
        encoder = open_encoder(path, device)
        if channels is not None and encoder.latent_channels != channels:
            raise UserError(
                f"the autoencoder in {path} has {encoder.latent_channels} latent channels, the model {channels}"
            )
    if made is not None:
        check_autoencoder(made, encoder, path)
    return encoder


def check_autoencoder(made: AutoencoderId, given: Encoder, path: Path | str | None) -> None:
    """Check that an autoencoder is the one that made some latents.

    Args:
        made: the one that made them.
        given: the one to decode with.
        path: its name on the command line. None: it was left out, and latents were taken for pixels.

    Raises:
        UserError: name, scale or weights differ.
    """
    # Without a hash in the manifest (pixels have none) the other fields must suffice.
    same_weights = made.weights_sha256 in (None, given.weights_sha256)
    if same_weights and (made.name, made.scale) == (given.name, given.scale):
        return
    theirs, its = (
        f"{coder.name}, scale {coder.scale:g}, weights {(coder.weights_sha256 or 'without a hash')[:16]}"
        for coder in (made, given)
    )
    if path is None:
        raise UserError(f"these latents were made by an autoencoder: {theirs}\n  name it: --vae PATH")
    right = "leave --vae out" if made.name == Identity.name else "name the one that they were encoded with"
    raise UserError(
        f"--vae {path} is another autoencoder than the one that made these latents:\n"
        f"  theirs: {theirs}\n  given:  {its}\n  {right}"
    )


def _read_folder(folder: Path) -> Any:
    for file in (_CONFIG, _WEIGHTS):
        if not (folder / file).is_file():  # diffusers would look for a model of that name on its hub
            raise UserError(f"no autoencoder in {folder}: there is no {file}\n  {_known(folder)}")
    try:
        config = json.loads((folder / _CONFIG).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"no autoencoder in {folder}: {_CONFIG} is not JSON: {error}\n  {_known(folder)}"
        ) from error
    kind = config.get("_class_name", _CLASSES[0]) if isinstance(config, dict) else type(config).__name__
    if kind not in _CLASSES:
        raise UserError(
            f"no autoencoder in {folder}: {_CONFIG} is of a {kind}; allowed: {', '.join(_CLASSES)}\n"
            f"  {_known(folder)}"
        )

    import diffusers

    try:
        # Low memory use needs a library that is not asked for, and diffusers warns where it is missing.
        vae, found = getattr(diffusers, kind).from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
    except Exception as error:  # a configuration's values reach torch and Python unchecked
        reason = textwrap.shorten(str(error) or type(error).__name__, 300, placeholder=" …")
        raise UserError(f"no autoencoder in {folder}: {reason}\n  {_known(folder)}") from error
    # diffusers would leave missing tensors random, and ignore unknown ones.
    for fault, word in (("missing_keys", "there is no"), ("unexpected_keys", "its configuration has no")):
        if found[fault]:
            raise UserError(f"no autoencoder in {folder}: {word} {sorted(found[fault])[0]}\n  {_known(folder)}")
    return vae


def _check(config: Any, path: Path) -> None:
    if (config.in_channels, config.out_channels) != (3, 3):
        raise UserError(
            f"the autoencoder in {path} maps {config.in_channels} to {config.out_channels} channels; "
            f"allowed: RGB images, 3 to 3"
        )
    scale = config.scaling_factor
    if isinstance(scale, bool) or not (isinstance(scale, int | float) and 0 < scale < _LARGEST_SCALE):
        raise UserError(
            f"the autoencoder in {path} has scaling_factor {scale!r}; allowed: numbers above 0 that float32 holds"
        )
    for name in ("shift_factor", "latents_mean", "latents_std"):
        if getattr(config, name, None):
            raise UserError(
                f"the autoencoder in {path} has {name} {getattr(config, name)}; allowed: latents that are only "
                f"scaled, as those of SD, SDXL, MAR and TAESD"
            )


def _known(path: Path) -> str:
    return (
        f"nothing is downloaded: fetch the files of one where there is a network, and put them at {path}\n"
        f"  SD's VAE (4 channels, 1/8): a folder with {_CONFIG} and {_WEIGHTS} of Hugging Face's "
        f"stabilityai/sd-vae-ft-mse, or the file vae-ft-mse-840000-ema-pruned.safetensors of its "
        f"stabilityai/sd-vae-ft-mse-original\n"
        f"  MAR's KL-16 (16 channels, 1/16): the file kl16.ckpt, linked in the README of LTH14/mar on GitHub\n"
        f"  TAESD (4 channels, 1/8; small, less exact): a folder with the two files of madebyollin/taesd\n"
        f"  identity: pixels as latents, no files"
    )
