"""Noise process and prediction target (Section 3, Eq. 2–4). Schedules are those of diffusers."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from ..config import check_types

if TYPE_CHECKING:
    from diffusers import DDPMScheduler

Prediction = Literal["epsilon", "x0", "v"]

# Names of diffusers.
PREDICTION_TYPES: dict[Prediction, str] = {"epsilon": "epsilon", "x0": "sample", "v": "v_prediction"}

# Largest β of the cosine schedule, which would otherwise end at 1.
_MAX_COSINE_BETA = 0.999
# The tables of more steps would take seconds and gigabytes.
_MOST_TRAIN_STEPS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """The forward process q(x_t | x_{t−1}) = N(√(1−β_t) x_{t−1}, β_t I)."""

    __pydantic_config__: ClassVar[dict[str, object]] = {
        "extra": "forbid",
        "use_attribute_docstrings": True,
        "allow_inf_nan": False,
    }

    num_train_steps: int = 1000
    """T, the steps of the training schedule."""
    beta_start: float = 1e-4
    """β at t = 0."""
    beta_end: float = 0.02
    """β at t = T − 1."""
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    """Shape of β between its ends. ADM, DiT and the paper's release use `linear`."""
    prediction: Prediction = "epsilon"
    """Prediction target: the noise ε, the latent x0 (Table 6b, last row), or v = √ᾱ ε − √(1−ᾱ) x_0."""
    variance: Literal["fixed_large", "fixed_small"] = "fixed_large"
    """Variance of a DDPM reverse step: β (the paper's release), or the posterior's β (1−ᾱ_{t−1}) / (1−ᾱ_t)."""

    def __post_init__(self) -> None:
        check_types(self)
        if self.num_train_steps < 1:
            raise ValueError(f"num_train_steps must be at least 1, got {self.num_train_steps}")
        if self.num_train_steps > _MOST_TRAIN_STEPS:
            raise ValueError(
                f"num_train_steps must be at most {_MOST_TRAIN_STEPS:,}, got {self.num_train_steps!r:.30}"
            )
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(f"0 < beta_start ≤ beta_end < 1 must hold, got {self.beta_start}, {self.beta_end}")

    def scheduler(self) -> DDPMScheduler:
        """Return diffusers' DDPM scheduler of this process: no clipping, times from 0 to T − 1.

        Its `linspace` times are not always ADM's: see `causalfusion.noise.samplers.spaced_times`.
        """
        # diffusers takes seconds to import, and training does not need it.
        from diffusers import DDPMScheduler

        scheduler = DDPMScheduler(
            num_train_timesteps=self.num_train_steps,
            beta_start=self.beta_start,
            beta_end=self.beta_end,
            beta_schedule=self.beta_schedule,
            variance_type=self.variance,
            clip_sample=False,
            prediction_type=PREDICTION_TYPES[self.prediction],
            timestep_spacing="linspace",
        )
        # diffusers tabulates ᾱ in float32, and 1 − ᾱ_t/ᾱ_{t−1} cancels: up to 5e-4 of a step's variance is lost.
        scheduler.betas = self.betas()
        scheduler.alphas = 1 - scheduler.betas
        scheduler.alphas_cumprod = self.alphas_cumprod()
        return scheduler

    def betas(self) -> Tensor:
        """Return β_t for every t: a (T,) float64 tensor on the CPU, of the float32 values of diffusers' tables."""
        if self.beta_schedule == "linear":
            return torch.linspace(self.beta_start, self.beta_end, self.num_train_steps).double()
        if self.beta_schedule == "scaled_linear":
            roots = torch.linspace(self.beta_start**0.5, self.beta_end**0.5, self.num_train_steps)
            return (roots**2).double()
        levels = [_cosine_level(step / self.num_train_steps) for step in range(self.num_train_steps + 1)]
        betas = [min(1 - after / before, _MAX_COSINE_BETA) for before, after in itertools.pairwise(levels)]
        return torch.tensor(betas, dtype=torch.float32).double()

    def alphas_cumprod(self) -> Tensor:
        """Return ᾱ_t for every t: a (T,) float64 tensor on the CPU."""
        return (1 - self.betas()).cumprod(0)

    def signal_and_noise_scales(self) -> tuple[Tensor, Tensor]:
        """Return √ᾱ_t and √(1−ᾱ_t) for every t: two (T,) float32 tensors on the CPU."""
        alphas_cumprod = self.alphas_cumprod()
        return alphas_cumprod.sqrt().float(), (1 - alphas_cumprod).sqrt().float()


def _cosine_level(time: float) -> float:
    """Return ᾱ of the cosine schedule at a time in [0, 1] (Nichol and Dhariwal 2021, Eq. 17), not normalized."""
    return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2


def noised_and_target(
    x0: Tensor, noise: Tensor, t: Tensor, scales: tuple[Tensor, Tensor], prediction: Prediction
) -> tuple[Tensor, Tensor]:
    """Return x_t = √ᾱ_t x_0 + √(1−ᾱ_t) ε and the network's target.

    Args:
        x0: data, which broadcasts against `noise`.
        noise: ε.
        t: times, int64, of shape noise.shape[:k] for some k, sizes of 1 allowed.
        scales: result of `signal_and_noise_scales`.
        prediction: ε, x_0 or v = √ᾱ_t ε − √(1−ᾱ_t) x_0.
    """
    shape = (*t.shape, *([1] * (noise.ndim - t.ndim)))
    signal, sigma = (scale.to(noise.device)[t].to(noise.dtype).view(shape) for scale in scales)
    noised = signal * x0 + sigma * noise
    if prediction == "epsilon":
        return noised, noise
    if prediction == "x0":
        return noised, x0.expand_as(noise)
    return noised, signal * noise - sigma * x0


def sample_times(num_train_steps: int, generators: list[torch.Generator], *shape: int) -> Tensor:
    """Draw uniform diffusion times for each generator: (B, *shape), int64, in [0, T)."""
    return torch.stack([torch.randint(num_train_steps, shape, generator=g) for g in generators])
