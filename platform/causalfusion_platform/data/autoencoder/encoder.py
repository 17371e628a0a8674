"""Conversion between images and latents.

Shapes: B images, H×H pixels. Latents are (B, channels, h, h) in the model's scale.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from causalfusion.weights.vae import decode_latents

from ...config.errors import UserError

Images = NDArray[np.uint8] | Tensor
"""(B, H, H, channels) uint8."""


class Encoder(Protocol):
    """Autoencoder, with the properties that the manifest of its latents records."""

    name: str
    """`identity`, `AutoencoderKL` or `AutoencoderTiny`."""
    scale: float
    """Factor by which encoded latents are multiplied."""
    has_posterior: bool
    """True if an image's latent is a distribution with mean and standard deviation."""
    downsampling: int
    """Pixels along a side per latent pixel."""
    image_channels: int
    latent_channels: int

    @property
    def weights_sha256(self) -> str | None:
        """SHA-256 over the weights, independent of their file. None: no weights."""

    def latent_shape(self, size: int) -> tuple[int, int, int]:
        """Return channels, height and width of the latent of an image of `size`×`size` pixels.

        Raises:
            UserError: the autoencoder does not take images of that size.
        """
        side, rest = divmod(size, self.downsampling)
        if rest or side < 1:
            below = max(side, 1) * self.downsampling
            raise UserError(
                f"images of {size}×{size} pixels do not fit the {self.name}, which halves sides down to a "
                f"{self.downsampling}th\n  name a multiple of {self.downsampling}, such as --size {below}"
            )
        return self.latent_channels, side, side

    def encode(self, images: Images) -> tuple[Tensor, Tensor | None]:
        """Map images (B, H, H, image_channels) uint8, pixel x as x / 127.5 − 1, to latents in the model's scale.

        Returns:
            Mean and standard deviation of the posterior, both times the scale, as float32 on the CPU. Without a
            posterior: the latent and None. The same batch gives the same bits on the same machine.

        Raises:
            ValueError: `images` have another shape or type.
            UserError: the autoencoder does not take images of their size.
        """

    def mean(self, pixels: Tensor) -> Tensor:
        """Map pixels (B, image_channels, H, H) in about [−1, 1] to mean latents in the model's scale.

        They stay on the autoencoder's device, without gradients.
        """

    def decode(self, latents: Tensor) -> Tensor:
        """Map latents in the model's scale to images (B, image_channels, H, H) in about [−1, 1], on the CPU."""


class Identity(Encoder):
    """Identity autoencoder: latents are the pixels, in [−1, 1]."""

    name = "identity"
    scale = 1.0
    has_posterior = False
    downsampling = 1
    weights_sha256 = None

    def __init__(self, channels: int = 3) -> None:
        self.image_channels = self.latent_channels = channels

    def encode(self, images: Images) -> tuple[Tensor, None]:
        return _pixels(self, images, "cpu"), None

    def mean(self, pixels: Tensor) -> Tensor:
        return pixels

    def decode(self, latents: Tensor) -> Tensor:
        return latents


class Autoencoder(Encoder):
    """Diffusers `AutoencoderKL` or `AutoencoderTiny`, in float32.

    As in diffusers, the model's latents are the encoder's times `config.scaling_factor`. For TAESD the factor is 1,
    because its encoder was trained to give SD's scaled latents.
    """

    image_channels = 3

    def __init__(self, vae: Any, *, bf16: bool = False) -> None:
        """Wrap an autoencoder, in float32 and in evaluation mode.

        Args:
            bf16: encode under autocast to bfloat16, faster on GPUs and less exact.
        """
        self.vae, self.bf16 = vae, bf16
        self.name = type(vae).__name__
        self.has_posterior = self.name == "AutoencoderKL"
        self.scale = float(vae.config.scaling_factor)
        self.latent_channels = int(vae.config.latent_channels)
        levels = vae.config.block_out_channels if self.has_posterior else vae.config.encoder_block_out_channels
        self.downsampling = 2 ** (len(levels) - 1)

    @cached_property
    def weights_sha256(self) -> str:
        return hash_weights(self.vae.state_dict())

    @torch.no_grad()
    def encode(self, images: Images) -> tuple[Tensor, Tensor | None]:
        pixels = _pixels(self, images, self.vae.device)
        self.latent_shape(pixels.shape[-1])
        rough = torch.autocast(pixels.device.type, torch.bfloat16, enabled=self.bf16)
        with exact_convolutions(pixels.device), rough:
            encoded = self.vae.encode(pixels)
        if not self.has_posterior:
            return self._scaled(encoded.latents), None
        posterior = encoded.latent_dist
        return self._scaled(posterior.mean), self._scaled(posterior.std)

    @torch.no_grad()
    def mean(self, pixels: Tensor) -> Tensor:
        self.latent_shape(pixels.shape[-1])
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=self.bf16):
            encoded = self.vae.encode(pixels)
        latents: Tensor = encoded.latent_dist.mean if self.has_posterior else encoded.latents
        return latents.float() * self.scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        return torch.cat([decode_latents(self.vae, one[None]).cpu() for one in latents])

    def _scaled(self, latents: Tensor) -> Tensor:
        return (latents.float() * self.scale).cpu()


def exact_convolutions(device: torch.device) -> AbstractContextManager[None]:
    """Make a device deterministic and use full float32 in the context.

    Otherwise cuDNN picks the kernel that is fastest at the moment, and rounds float32 to 10 bits (TF32). The
    switches are global to the process. On CPUs they are not touched, because threads encode in parallel there.
    """
    if device.type != "cuda":
        return nullcontext()
    exact: AbstractContextManager[None] = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    return exact


def encode_both(encoder: Encoder, images: Images, *, flip: bool = True) -> dict[str, Tensor]:
    """Encode images and their mirror images separately, because an autoencoder does not commute with mirroring.

    Returns:
        Those of `mean`, `std`, `mean_flip` and `std_flip` that exist, as `Encoder.encode` returns them.
    """
    encoded = {"": encoder.encode(images)}
    if flip:
        encoded["_flip"] = encoder.encode(np.asarray(images)[:, :, ::-1])
    return {
        f"{name}{suffix}": latents
        for suffix, moments in encoded.items()
        for name, latents in zip(("mean", "std"), moments, strict=True)
        if latents is not None
    }


def hash_weights(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over the tensors' names, types, shapes and bytes, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _pixels(encoder: Encoder, images: Images, device: torch.device | str) -> Tensor:
    """Return (B, channels, H, H) float32 in [−1, 1]."""
    array = np.array(images, order="C")  # a copy: torch refuses read-only arrays and negative strides
    square = array.ndim == 4 and array.shape[1] == array.shape[2]
    if array.dtype != np.uint8 or not square or array.shape[3] != encoder.image_channels:
        raise ValueError(
            f"images must be (B, H, H, {encoder.image_channels}) uint8, got {array.shape} {array.dtype}"
        )
    pixels = torch.from_numpy(array).to(device).permute(0, 3, 1, 2).contiguous()
    return pixels.float() / 127.5 - 1
