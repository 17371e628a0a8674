"""Sampling without batch or cache: each diffusion step recomputes one sample's whole sequence, in numpy float64.

The reverse step is written out again here, from DDPM's posterior (Ho et al. 2020, Eq. 7 and 15).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from causalfusion import DiffusionConfig, ModelConfig
from causalfusion.draws import stream

if TYPE_CHECKING:
    from tests.models.conftest import NaiveTransformer

Array = npt.NDArray[np.float64]
Tokens = tuple[Array, list[int]]
"""Patches and the raster positions that they stand at."""

# ᾱ of the linear schedule with the float32 β that training uses.
ALPHAS_CUMPROD: Array = np.cumprod(1 - torch.linspace(1e-4, 0.02, 1000).double().numpy())

GRID = 4
"""Patches along a side of the tiny models."""


def generator_of(index: int, seed: int) -> torch.Generator:
    """Return what draws the order and the noise of a sample."""
    return stream(seed, "generated sample", index)


def random_order(generator: torch.Generator, count: int = GRID**2) -> list[int]:
    return [int(position) for position in torch.randperm(count, generator=generator)]


def adm_times(steps: int, train_steps: int = 1000) -> list[int]:
    """Return the diffusion times from 0 to T − 1, latest first."""
    return [round(k * (train_steps - 1) / (steps - 1)) for k in range(steps)][::-1] if steps > 1 else [0]


def predict(
    transformer: NaiveTransformer, label: Any, done: list[Tokens], x: Array, here: list[int], t: int
) -> Array:
    """Predict for the noised tokens of one AR step: a pass over [class | finished steps | time | noised].

    The explicit mask: a token sees the tokens of its own and of earlier steps. The time token, where there is one,
    is seen by the noised tokens and itself only, and sees the class tokens and itself.
    """
    token = transformer.config.time_conditioning == "token"
    first, rank = transformer.condition(label)  # before the first step
    parts = [first]
    for step, (patches, positions) in enumerate(done):
        parts.append(transformer.image_tokens(patches, positions))
        rank += [step] * len(positions)
    time_at = len(rank) if token else None
    if token:
        parts.append(transformer.time(t)[None])
        rank.append(len(done))
    parts.append(transformer.image_tokens(x, here, None if token else t))
    rank += [len(done)] * len(here)
    visible = [[other <= own for other in rank] for own in rank]
    if time_at is not None:
        visible[time_at] = [other < 0 or j == time_at for j, other in enumerate(rank)]
    return transformer.predict(transformer.run_blocks(np.concatenate(parts), visible)[-len(here) :])


def reverse_step(diffusion: DiffusionConfig, t: int, before: int | None, x: Array, out: Array, z: Array) -> Array:
    """Go from time t to the time before (None: to the data): mean and variance of q(x_before | x_t, x̂_0)."""
    now = ALPHAS_CUMPROD[t]
    then = 1.0 if before is None else ALPHAS_CUMPROD[before]
    x0 = {
        "epsilon": (x - np.sqrt(1 - now) * out) / np.sqrt(now),
        "x0": out,
        "v": np.sqrt(now) * x - np.sqrt(1 - now) * out,
    }[diffusion.prediction]
    beta = 1 - now / then
    mean = (np.sqrt(then) * beta * x0 + np.sqrt(1 - beta) * (1 - then) * x) / (1 - now)
    variance = beta if diffusion.variance == "fixed_large" else beta * (1 - then) / (1 - now)
    result: Array = mean if before is None else mean + np.sqrt(variance) * z
    return result


def generate(
    transformer: NaiveTransformer,
    label: Any,
    order: list[int],
    sizes: list[int],
    generator: torch.Generator,
    *,
    steps: int | list[int],
    scales: float | list[list[float]] = 1.0,
    known: Iterable[Tokens] = (),
    diffusion: DiffusionConfig | None = None,
) -> dict[int, Array]:
    """Generate tokens in the given order; return the patch of each position, those of `known` too.

    Args:
        transformer: the model.
        label: the class, or a tuple of text tokens.
        order: positions to generate, cut into AR steps of `sizes`.
        sizes: tokens of each AR step.
        generator: draws x_T, then the noise, of one AR step after the other.
        steps: diffusion steps of all or of each AR step.
        scales: guidance of everything, or of each diffusion step of each AR step; 1 is the class alone.
        known: clean tokens that come before the first AR step; one entry is one AR step.
        diffusion: the noise process; default: predicts ε, large variance.
    """
    diffusion = diffusion or DiffusionConfig()
    done, first = list(known), 0
    for number, size in enumerate(sizes):
        times = adm_times(steps if isinstance(steps, int) else steps[number])
        here = order[first : first + size]
        first += size
        shape = (size, transformer.config.token_dim)
        x: Array = torch.randn(shape, generator=generator).double().numpy()
        for k, t in enumerate(times):
            last = k == len(times) - 1
            scale = scales if isinstance(scales, float) else scales[number][k]
            out = predict(transformer, label, done, x, here, t)
            if scale != 1.0:
                null = predict(transformer, transformer.config.null_class, done, x, here, t)
                out = null + scale * (out - null)
            z: Array = np.zeros(shape) if last else torch.randn(shape, generator=generator).double().numpy()
            x = reverse_step(diffusion, t, None if last else times[k + 1], x, out, z)
        done.append((x, here))
    return {at: patch for patches, places in done for patch, at in zip(patches, places, strict=True)}


def picture(patches: dict[int, Array], config: ModelConfig, rows: int = GRID, columns: int = GRID) -> Array:
    """Put patches where they belong: (channels, height, width), NaN where there is none."""
    p, channels = config.patch_size, config.in_channels
    image = np.full((channels, rows * p, columns * p), np.nan)
    for position, values in patches.items():
        y, x = divmod(position, columns)
        block = values.reshape(p, p, channels)
        for c in range(channels):
            image[c, y * p : (y + 1) * p, x * p : (x + 1) * p] = block[:, :, c]
    return image


def relative_error(found: torch.Tensor, expected: Array) -> float:
    """Return the largest error over the largest value."""
    return float(np.abs(found.double().numpy() - expected).max() / np.abs(expected).max())
