"""Noise of sampling, drawn on the host while the device computes.

Shapes: B samples, N tokens of one AR step, P numbers in a patch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .. import draws

# Diffusion steps whose noise is drawn, and brought to the device, together.
_NOISE_CHUNK = 16


def noise_of_ar_step(
    generators: Sequence[torch.Generator],
    shape: tuple[int, int],
    steps: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Iterator[Tensor]:
    """Yield x_T of one AR step, then the noise of each diffusion step: (B, N, P) on the device.

    Noise is drawn when it is asked for, in chunks. Ask for it after the forward pass was started. A GPU then
    computes while the host draws, and the host need not wait for copies from pinned memory.

    Args:
        generators: one per sample.
        shape: N and P.
        steps: diffusion steps that need noise.
        device: where the noise is needed.
        dtype: type of the latents. Draws are float32.
    """
    for count in (1, *(min(_NOISE_CHUNK, steps - start) for start in range(0, steps, _NOISE_CHUNK))):
        drawn = torch.stack([draws.randn_each(generators, *shape) for _ in range(count)])
        yield from to_device(drawn, device).to(dtype)


def to_device(host: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the host to a device. A GPU copies from pinned memory while the host goes on."""
    if device.type == "cuda" and host.device.type == "cpu":
        return host.pin_memory().to(device, non_blocking=True)
    return host.to(device)
