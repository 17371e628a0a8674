"""Reading of diffusers schedulers: the noise process and the sampler that they stand for."""

from __future__ import annotations

import inspect
from typing import Any

from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    UniPCMultistepScheduler,
)

from .diffusion import PREDICTION_TYPES, DiffusionConfig
from .samplers import SamplerName

_SAMPLERS: dict[type, SamplerName] = {
    DDPMScheduler: "ddpm",
    DDIMScheduler: "ddim",
    DPMSolverMultistepScheduler: "dpm-solver++",
    UniPCMultistepScheduler: "unipc",
}
_BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
_VARIANCES = ("fixed_large", "fixed_small")


def read_scheduler(scheduler: Any) -> tuple[SamplerName, DiffusionConfig]:
    """Return the sampler and the noise process of a diffusers scheduler.

    A scheduler without a variance setting gets that of the paper's release. Only DDPM uses it.

    Raises:
        ValueError: a class or a setting that `causalfusion.noise.samplers` does not support.
    """
    if type(scheduler) not in _SAMPLERS:
        known = ", ".join(known.__name__ for known in _SAMPLERS)
        raise ValueError(f"scheduler must be one of {known}, got {type(scheduler).__name__}")
    given = scheduler.config
    predictions = {theirs: ours for ours, theirs in PREDICTION_TYPES.items()}
    variance = given.get("variance_type") or DiffusionConfig.variance
    check_one_of("the scheduler's beta_schedule", given.beta_schedule, _BETA_SCHEDULES)
    check_one_of("the scheduler's prediction_type", given.prediction_type, tuple(predictions))
    check_one_of("the scheduler's variance_type", variance, _VARIANCES)
    diffusion = DiffusionConfig(
        num_train_steps=given.num_train_timesteps,
        beta_start=given.beta_start,
        beta_end=given.beta_end,
        beta_schedule=given.beta_schedule,
        prediction=predictions[given.prediction_type],
        variance=variance,
    )
    ours = type(scheduler).from_config(diffusion.scheduler().config).config
    settings = set(inspect.signature(type(scheduler)).parameters) - {"variance_type"}
    differing = [
        f"{name} {given[name]!r} (must be {ours[name]!r})" for name in sorted(settings) if given[name] != ours[name]
    ]
    if differing:
        name = type(scheduler).__name__
        raise ValueError(
            f"{name} has settings that the {_SAMPLERS[type(scheduler)]} sampler does not: {', '.join(differing)}; "
            f"{name}.from_config(pipe.scheduler.config) takes over those of the pipeline"
        )
    return _SAMPLERS[type(scheduler)], diffusion


def check_one_of(what: str, given: object, allowed: tuple[str, ...]) -> None:
    """Raise a ValueError that says what is allowed if `given` is not."""
    if given not in allowed:
        raise ValueError(f"{what} must be one of {', '.join(allowed)}, got {given!r}")
