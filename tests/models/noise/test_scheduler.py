"""Schedulers of diffusers, read as a noise process and a sampler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from causalfusion import DiffusionConfig
from causalfusion.noise.scheduler import read_scheduler

PROCESSES = [
    DiffusionConfig(),
    DiffusionConfig(num_train_steps=400, beta_start=3e-4, beta_end=0.017, beta_schedule="scaled_linear"),
    DiffusionConfig(prediction="x0", variance="fixed_small"),
    DiffusionConfig(prediction="v", beta_schedule="squaredcos_cap_v2", variance="fixed_small"),
]
SAMPLERS = [
    (DDPMScheduler, "ddpm"),
    (DDIMScheduler, "ddim"),
    (DPMSolverMultistepScheduler, "dpm-solver++"),
    (UniPCMultistepScheduler, "unipc"),
]


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize(("kind", "name"), SAMPLERS)
def test_the_process_outlasts_a_swap_and_a_file(
    process: DiffusionConfig, kind: Any, name: str, tmp_path: Path
) -> None:
    swapped = kind.from_config(process.scheduler().config)
    swapped.save_pretrained(tmp_path)
    assert read_scheduler(swapped) == read_scheduler(kind.from_pretrained(tmp_path)) == (name, process)


@pytest.mark.parametrize("process", PROCESSES)
def test_the_process_outlasts_one_swap_after_another(process: DiffusionConfig) -> None:
    """The variance too, which only DDPM's scheduler knows what to do with."""
    scheduler: Any = process.scheduler()
    for kind, name in [*SAMPLERS[1:], *SAMPLERS[::-1]]:
        scheduler = kind.from_config(scheduler.config)
        assert read_scheduler(scheduler) == (name, process)


def test_the_process_is_read_off_what_diffusers_calls_it() -> None:
    scheduler = DDPMScheduler(
        num_train_timesteps=300,
        beta_start=2e-4,
        beta_end=0.03,
        prediction_type="sample",
        variance_type="fixed_small",
        clip_sample=False,
        timestep_spacing="linspace",
    )
    assert read_scheduler(scheduler) == (
        "ddpm",
        DiffusionConfig(
            num_train_steps=300, beta_start=2e-4, beta_end=0.03, prediction="x0", variance="fixed_small"
        ),
    )


def test_a_scheduler_without_a_variance_has_that_of_the_release() -> None:
    for scheduler in (DPMSolverMultistepScheduler(), UniPCMultistepScheduler()):
        assert read_scheduler(scheduler)[1].variance == "fixed_large"


def test_a_scheduler_without_a_sampler_of_ours_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one of DDPMScheduler, DDIMScheduler, .*got EulerDiscreteScheduler"):
        read_scheduler(EulerDiscreteScheduler())


@pytest.mark.parametrize(
    ("kind", "setting", "message"),
    [
        (DDPMScheduler, {"beta_schedule": "sigmoid"}, "beta_schedule must be one of linear, .*'sigmoid'"),
        (
            DPMSolverMultistepScheduler,
            {"prediction_type": "flow_prediction"},
            "prediction_type must be one of eps",
        ),
        (
            DDPMScheduler,
            {"variance_type": "learned_range"},
            "variance_type must be one of fixed_large",
        ),
        (DDPMScheduler, {"clip_sample": True}, r"clip_sample True \(must be False\)"),
        (DDIMScheduler, {"timestep_spacing": "leading"}, r"timestep_spacing 'leading' \(must be 'linspace'\)"),
        (DDIMScheduler, {"trained_betas": [0.1] * 1000}, r"trained_betas \[.*\(must be None\)"),
        (DDIMScheduler, {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
        (DPMSolverMultistepScheduler, {"solver_order": 3}, r"solver_order 3 \(must be 2\)"),
        (DPMSolverMultistepScheduler, {"use_karras_sigmas": True}, "use_karras_sigmas True"),
        (UniPCMultistepScheduler, {"solver_type": "bh1"}, "solver_type 'bh1'"),
    ],
)
def test_settings_that_no_sampler_of_ours_has_are_refused(kind: Any, setting: dict[str, Any], message: str) -> None:
    """Not silently left out."""
    scheduler = kind.from_config(DiffusionConfig().scheduler().config, **setting)
    with pytest.raises(ValueError, match=message):
        read_scheduler(scheduler)
