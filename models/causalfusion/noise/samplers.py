"""Reverse diffusion: DDPM and DDIM on ADM's times, DPM-Solver++ and UniPC of diffusers."""

from __future__ import annotations

import math
from typing import Any, Literal, Protocol

from torch import Tensor

from .diffusion import PREDICTION_TYPES, DiffusionConfig, Prediction

SamplerName = Literal["ddpm", "ddim", "dpm-solver++", "unipc"]


class Sampler(Protocol):
    """Denoising of the tokens of one AR step. Each instance is used once."""

    times: list[int]
    """Diffusion times in the order in which they are visited, in units of the training schedule's steps."""
    noise_steps: int
    """Number of steps, counted from the first, that need noise."""

    def step(self, index: int, prediction: Tensor, x: Tensor, noise: Tensor | None) -> Tensor:
        """Return x at the time after `times[index]`, given x at that time and the network's prediction."""


def spaced_times(num_train_steps: int, num_steps: int) -> list[int]:
    """Return the diffusion times that ADM's respacing keeps, latest first: T − 1 … 0 (one step: 0).

    The stride is added up and then rounded, as ADM does it. The `linspace` of diffusers rounds k · stride instead.
    For 278 numbers of steps up to 1000 (21 is the first) some of its times are off by one.

    Raises:
        ValueError: a number of steps outside [1, T].
    """
    if not 1 <= num_steps <= num_train_steps:
        raise ValueError(f"diffusion steps must lie in [1, {num_train_steps}], got {num_steps}")
    stride = (num_train_steps - 1) / (num_steps - 1) if num_steps > 1 else 1.0
    times, place = [], 0.0
    for _ in range(num_steps):
        times.append(round(place))
        place += stride
    return times[::-1]


class LinearSampler:
    """DDPM's ancestral sampling (Eq. 3) and DDIM, both on ADM's times.

    For every prediction target, x at the next time is linear in x_t, the prediction and noise. The coefficients of
    all steps are float64 numbers on the host, so that a step does not wait for the device.
    """

    def __init__(self, diffusion: DiffusionConfig, num_steps: int, *, deterministic: bool) -> None:
        self.times = spaced_times(diffusion.num_train_steps, num_steps)
        self.noise_steps = 0 if deterministic else num_steps - 1
        table = diffusion.alphas_cumprod()
        levels = [float(table[t]) for t in self.times]
        rule = _ddim_step if deterministic else _ddpm_step
        # Each step: of x_t, of the prediction, of the noise.
        self.coefficients = [
            rule(diffusion, level, previous) for level, previous in zip(levels, [*levels[1:], 1.0], strict=True)
        ]

    def step(self, index: int, prediction: Tensor, x: Tensor, noise: Tensor | None) -> Tensor:
        of_x, of_prediction, of_noise = self.coefficients[index]
        mean = of_x * x + of_prediction * prediction
        return mean if noise is None else mean + of_noise * noise


def _ddpm_step(diffusion: DiffusionConfig, level: float, previous: float) -> tuple[float, float, float]:
    """Go from ᾱ_t = level to ᾱ = previous: the posterior's mean is of_x0 · x_0 + of_x · x_t."""
    beta = 1 - level / previous
    of_x0 = math.sqrt(previous) * beta / (1 - level)
    of_x = math.sqrt(1 - beta) * (1 - previous) / (1 - level)
    variance = beta if diffusion.variance == "fixed_large" else beta * (1 - previous) / (1 - level)
    return *_in_terms_of_prediction(diffusion.prediction, level, of_x0, of_x), math.sqrt(variance)


def _ddim_step(diffusion: DiffusionConfig, level: float, previous: float) -> tuple[float, float, float]:
    """Go from ᾱ_t = level to ᾱ = previous: √previous · x_0 + √(1 − previous) · ε, ε = (x_t − √ᾱ x_0) / √(1 − ᾱ)."""
    of_x = math.sqrt((1 - previous) / (1 - level))
    of_x0 = math.sqrt(previous) - of_x * math.sqrt(level)
    return *_in_terms_of_prediction(diffusion.prediction, level, of_x0, of_x), 0.0


def _in_terms_of_prediction(prediction: Prediction, level: float, of_x0: float, of_x: float) -> tuple[float, float]:
    """Turn the coefficients of x_0 and x_t into those of x_t and the network's prediction."""
    signal, sigma = math.sqrt(level), math.sqrt(1 - level)
    if prediction == "epsilon":  # x_0 = (x_t − σ ε) / √ᾱ
        return of_x + of_x0 / signal, -of_x0 * sigma / signal
    if prediction == "x0":
        return of_x, of_x0
    return of_x + of_x0 * signal, -of_x0 * sigma  # x_0 = √ᾱ x_t − σ v


class Solver:
    """Deterministic solver of diffusers."""

    noise_steps = 0

    def __init__(self, scheduler: Any, num_steps: int) -> None:
        scheduler.set_timesteps(num_steps)
        self.scheduler = scheduler
        self.times: list[int] = scheduler.timesteps.tolist()

    def step(self, index: int, prediction: Tensor, x: Tensor, noise: Tensor | None) -> Tensor:
        del noise
        out: Tensor = self.scheduler.step(prediction, self.scheduler.timesteps[index], x).prev_sample
        return out


def check_diffusion_steps(name: SamplerName, diffusion: DiffusionConfig, num_steps: int) -> None:
    """Check that a sampler supports this number of diffusion steps.

    Raises:
        ValueError: it does not.
    """
    # Of T parts, rounding would give two the same time, and a solver's step between equal times divides by zero.
    most = diffusion.num_train_steps - (name in ("dpm-solver++", "unipc"))
    if not 1 <= num_steps <= most:
        raise ValueError(f"{name}'s diffusion steps must lie in [1, {most}], got {num_steps}")


def make_sampler(name: SamplerName, diffusion: DiffusionConfig, num_steps: int) -> Sampler:
    """Return a fresh sampler of `num_steps` diffusion steps.

    DDPM and DDIM visit ADM's times, from T − 1 to 0. DPM-Solver++ and UniPC divide [0, T − 1] into `num_steps`
    equal parts and visit the upper ends. All end at x_0.

    DDIM is not that of diffusers, which steps back by T // n with every spacing. It misses its own times unless n
    divides T.

    Raises:
        ValueError: unknown name, or a number of steps outside [1, T], or [1, T − 1] for DPM-Solver++ and UniPC.
    """
    if name in ("ddpm", "ddim"):
        return LinearSampler(diffusion, num_steps, deterministic=name == "ddim")
    if name not in ("dpm-solver++", "unipc"):
        raise ValueError(f"unknown sampler {name!r}; samplers: ddpm, ddim, dpm-solver++, unipc")
    check_diffusion_steps(name, diffusion, num_steps)
    from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler

    process = {
        "num_train_timesteps": diffusion.num_train_steps,
        "beta_start": diffusion.beta_start,
        "beta_end": diffusion.beta_end,
        "beta_schedule": diffusion.beta_schedule,
        "prediction_type": PREDICTION_TYPES[diffusion.prediction],
        "timestep_spacing": "linspace",
    }
    if name == "unipc":
        return Solver(UniPCMultistepScheduler(**process), num_steps)
    return Solver(DPMSolverMultistepScheduler(**process, algorithm_type="dpmsolver++"), num_steps)
