"""The noise process: DDPM schedules through diffusers (Section 3, Eq. 2–4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import DDPMScheduler


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """The forward process q(x_t | x_{t−1}) = N(√(1−β_t) x_{t−1}, β_t I)."""

    __pydantic_config__: ClassVar[dict[str, object]] = {"extra": "forbid", "use_attribute_docstrings": True}

    num_train_steps: int = 1000
    """T, the steps of the training schedule."""
    beta_start: float = 1e-4
    """β at t = 0."""
    beta_end: float = 0.02
    """β at t = T − 1."""
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    """Shape of β between its ends; linear is that of ADM, DiT and the paper's release."""

    def __post_init__(self) -> None:
        if self.num_train_steps < 1:
            raise ValueError(f"num_train_steps must be at least 1, got {self.num_train_steps}")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(f"0 < beta_start ≤ beta_end < 1 must hold, got {self.beta_start}, {self.beta_end}")

    def scheduler(self) -> DDPMScheduler:
        """Return the sampler's scheduler: fixed-large variance, no clipping, ADM's respacing.

        diffusers' `linspace` spacing is ADM's `space_timesteps(T, [n])`: n times from 0 to T − 1, both included.
        """
        # diffusers takes seconds to import; processes that only read data or show progress never need it.
        from diffusers import DDPMScheduler

        scheduler = DDPMScheduler(
            num_train_timesteps=self.num_train_steps,
            beta_start=self.beta_start,
            beta_end=self.beta_end,
            beta_schedule=self.beta_schedule,
            variance_type="fixed_large",
            clip_sample=False,
            prediction_type="epsilon",
            timestep_spacing="linspace",
        )
        # diffusers tabulates ᾱ in float32, and 1 − ᾱ_t/ᾱ_{t−1} cancels: up to 5e-4 of a step's variance is lost.
        scheduler.betas = scheduler.betas.double()
        scheduler.alphas = 1 - scheduler.betas
        scheduler.alphas_cumprod = scheduler.alphas.cumprod(0)
        return scheduler

    def signal_and_noise_scales(self) -> tuple[Tensor, Tensor]:
        """Return √ᾱ_t and √(1−ᾱ_t) for every t: two (T,) float32 tensors on the CPU."""
        alphas_cumprod: Tensor = self.scheduler().alphas_cumprod
        return alphas_cumprod.sqrt().float(), (1 - alphas_cumprod).sqrt().float()


def add_noise(x0: Tensor, noise: Tensor, t: Tensor, scales: tuple[Tensor, Tensor]) -> Tensor:
    """Draw x_t = √ᾱ_t x_0 + √(1−ᾱ_t) ε for times t of shape (B,), broadcast over the other dimensions of x0."""
    shape = (-1, *([1] * (x0.ndim - 1)))
    signal, sigma = (scale.to(x0.device)[t].to(x0.dtype).view(shape) for scale in scales)
    return signal * x0 + sigma * noise


def sample_times(num_train_steps: int, generators: list[torch.Generator]) -> Tensor:
    """Draw one uniform diffusion time per generator: (B,), int64, in [0, T)."""
    return torch.stack([torch.randint(num_train_steps, (), generator=g) for g in generators])
