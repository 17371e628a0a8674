"""The noise process against ADM's arithmetic in float64."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers import DDPMScheduler
from scipy import stats
from torch import Tensor

from causalfusion import DiffusionConfig
from causalfusion.noise.diffusion import Prediction, noised_and_target, sample_times

Array = npt.NDArray[np.float64]


def adm_alphas_cumprod() -> Array:
    """Return ᾱ_t of the linear schedule: β from 1e-4 to 0.02 in 1000 steps."""
    return np.cumprod(np.float64(1.0) - np.linspace(1e-4, 0.02, 1000), dtype=np.float64)


def adm_space_timesteps(num_timesteps: int, section_count: int) -> list[int]:
    """Return ADM's `space_timesteps(num_timesteps, [section_count])`, sorted."""
    stride = (num_timesteps - 1) / (section_count - 1)
    current, steps = 0.0, []
    for _ in range(section_count):
        steps.append(round(current))
        current += stride
    return steps


class AdmPosterior:
    """ADM's `SpacedDiffusion`: x_{t−1} = from_x · x_t + from_noise · ε + deviation · z, per kept step."""

    def __init__(self, timesteps: list[int]) -> None:
        kept = adm_alphas_cumprod()[timesteps]
        betas, last = [], 1.0
        for alpha_cumprod in kept:
            betas.append(1 - alpha_cumprod / last)
            last = alpha_cumprod
        beta = np.array(betas)
        alpha = 1.0 - beta
        cumprod = np.cumprod(alpha)
        cumprod_prev = np.append(1.0, cumprod[:-1])
        posterior_variance = beta * (1.0 - cumprod_prev) / (1.0 - cumprod)
        mean_coef1 = beta * np.sqrt(cumprod_prev) / (1.0 - cumprod)
        mean_coef2 = (1.0 - cumprod_prev) * np.sqrt(alpha) / (1.0 - cumprod)
        self.from_x = mean_coef1 * np.sqrt(1.0 / cumprod) + mean_coef2
        self.from_noise = -mean_coef1 * np.sqrt(1.0 / cumprod - 1)
        fixed_large_log = np.log(np.append(posterior_variance[1], beta[1:]))
        self.deviation = np.exp(0.5 * fixed_large_log)
        self.deviation[0] = 0.0  # no noise when t == 0


@pytest.mark.parametrize("count", [10, 50, 250, 1000])
def test_respaced_posterior_against_adm(count: int) -> None:
    """Mean and fixed-large variance of each reverse step, within 1e-6 relative.

    The scheduler is probed with (x, ε) = (1, 0), (0, 1) and (0, 0); its noise z is known by its generator.
    """
    scheduler = DiffusionConfig().scheduler()
    scheduler.set_timesteps(count)
    timesteps = adm_space_timesteps(1000, count)
    assert scheduler.timesteps.tolist() == timesteps[::-1]

    x = torch.tensor([[1.0], [0.0], [0.0]], dtype=torch.float64)
    noise = torch.tensor([[0.0], [1.0], [0.0]], dtype=torch.float64)
    z = torch.randn(3, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)[:, 0].numpy()
    found = []
    for t in timesteps:
        out = scheduler.step(noise, t, x, generator=torch.Generator().manual_seed(0)).prev_sample[:, 0].numpy()
        deviation = out[2] / z[2]
        found.append((out[0] - deviation * z[0], out[1] - deviation * z[1], deviation))
    from_x, from_noise, deviation = np.array(found).T

    expected = AdmPosterior(timesteps)
    np.testing.assert_allclose(from_x, expected.from_x, rtol=1e-6)
    np.testing.assert_allclose(from_noise, expected.from_noise, rtol=1e-6)
    np.testing.assert_allclose(deviation, expected.deviation, rtol=1e-6)


def test_nothing_is_clipped() -> None:
    """Latents are not bounded by 1: the reverse step is linear."""
    scheduler = DiffusionConfig().scheduler()
    scheduler.set_timesteps(10)
    x, noise = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    out = [scheduler.step(noise * k, 0, x * k, generator=torch.Generator()).prev_sample for k in (1.0, 1000.0)]
    torch.testing.assert_close(out[1], 1000 * out[0], rtol=1e-12, atol=0)


def test_scales_against_the_closed_form() -> None:
    """√ᾱ_t and √(1−ᾱ_t), ᾱ_t = Π (1−β); σ_0 = √1e-4 = 0.01."""
    signal, sigma = DiffusionConfig().signal_and_noise_scales()
    assert signal.dtype == sigma.dtype == torch.float32
    cumprod = adm_alphas_cumprod()
    np.testing.assert_allclose(signal.double().numpy(), np.sqrt(cumprod), rtol=1e-6)
    np.testing.assert_allclose(sigma.double().numpy(), np.sqrt(1 - cumprod), rtol=1e-6)
    assert float(sigma[0]) == pytest.approx(0.01, rel=1e-6)


def by_hand(x0: Tensor, noise: Tensor, alpha: float) -> dict[str, Tensor]:
    """Return x_t and each kind of target, for one time, from ᾱ_t."""
    signal, sigma = math.sqrt(alpha), math.sqrt(1 - alpha)
    return {"x_t": signal * x0 + sigma * noise, "epsilon": noise, "x0": x0, "v": signal * noise - sigma * x0}


@pytest.mark.parametrize("prediction", get_args(Prediction))
@pytest.mark.parametrize("shape", [(3,), (3, 5), (3, 2, 4, 4)])
def test_noised_and_target_against_loops(shape: tuple[int, ...], prediction: Prediction) -> None:
    """x_t = √ᾱ_t x_0 + √(1−ᾱ_t) ε with each sample's own t; the target is ε, x_0 or √ᾱ_t ε − √(1−ᾱ_t) x_0."""
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    times = torch.tensor([0, 400, 999])
    noised, target = noised_and_target(x0, noise, times, DiffusionConfig().signal_and_noise_scales(), prediction)
    assert noised.dtype == target.dtype == torch.float64
    assert noised.shape == target.shape == shape
    for i, t in enumerate(times.tolist()):
        expected = by_hand(x0[i], noise[i], adm_alphas_cumprod()[t])
        torch.testing.assert_close(noised[i], expected["x_t"], rtol=0, atol=1e-6)
        torch.testing.assert_close(target[i], expected[prediction], rtol=0, atol=1e-6)


@pytest.mark.parametrize("prediction", get_args(Prediction))
@pytest.mark.parametrize("per_token", [False, True])
def test_copies_of_one_image_against_loops(prediction: Prediction, per_token: bool) -> None:
    """Data (B, 1, L, P), noise (B, R, L, P) and times (B, R, 1) or (B, R, L), as the objective has them."""
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(2, 1, 4, 5, generator=generator, dtype=torch.float64)
    noise = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    times = torch.randint(1000, (2, 3, 4 if per_token else 1), generator=generator)
    scales = DiffusionConfig().signal_and_noise_scales()
    noised, target = noised_and_target(x0, noise, times, scales, prediction)
    assert noised.shape == target.shape == noise.shape
    for b in range(2):
        for copy in range(3):
            for token in range(4):
                t = int(times[b, copy, token if per_token else 0])
                expected = by_hand(x0[b, 0, token], noise[b, copy, token], adm_alphas_cumprod()[t])
                torch.testing.assert_close(noised[b, copy, token], expected["x_t"], rtol=0, atol=1e-6)
                torch.testing.assert_close(target[b, copy, token], expected[prediction], rtol=0, atol=1e-6)


@pytest.mark.parametrize("prediction", get_args(Prediction))
def test_noising_keeps_the_type_of_the_data(prediction: Prediction) -> None:
    x0 = torch.zeros(2, 3, dtype=torch.bfloat16)
    noise = torch.ones(2, 3, dtype=torch.bfloat16)
    scales = DiffusionConfig().signal_and_noise_scales()
    for x in noised_and_target(x0, noise, torch.tensor([0, 999]), scales, prediction):
        assert x.dtype == torch.bfloat16


@pytest.mark.parametrize("prediction", get_args(Prediction))
def test_the_sampler_solves_the_same_x0_from_every_target(prediction: Prediction) -> None:
    """diffusers' scheduler, given the exact target, finds the data again: one meaning of ε, x_0 and v."""
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(1, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    config = DiffusionConfig(prediction=prediction)
    scheduler = config.scheduler()
    scheduler.set_timesteps(1000)
    for t in (1, 400, 999):
        noised, target = noised_and_target(x0, noise, torch.tensor(t), config.signal_and_noise_scales(), prediction)
        found = scheduler.step(target, t, noised).pred_original_sample
        torch.testing.assert_close(found, x0, rtol=0, atol=2e-5)  # √ᾱ_999 = 0.006 enlarges float32's error


def test_times_are_uniform_and_one_per_generator() -> None:
    generator = torch.Generator().manual_seed(0)
    times = sample_times(10, [generator] * 3000)
    assert times.dtype == torch.int64
    assert stats.chisquare(torch.bincount(times, minlength=10).numpy()).pvalue > 1e-3
    assert times.shape == (3000,)
    alone = [sample_times(1000, [torch.Generator().manual_seed(i)]).item() for i in range(4)]
    assert sample_times(1000, [torch.Generator().manual_seed(i) for i in range(4)]).tolist() == alone


def test_several_times_of_a_sample_are_uniform_and_independent() -> None:
    """Table 7: 3 copies with times of their own for each of 2 AR steps."""
    times = sample_times(10, [torch.Generator().manual_seed(i) for i in range(2000)], 3, 2)
    assert times.shape == (2000, 3, 2)
    flat = times.flatten(1)
    for i in range(6):
        assert stats.chisquare(torch.bincount(flat[:, i], minlength=10).numpy()).pvalue > 1e-3
        for j in range(i):
            table = torch.bincount(flat[:, i] * 10 + flat[:, j], minlength=100).view(10, 10)
            assert stats.chi2_contingency(table.numpy()).pvalue > 1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_train_steps": 0}, "num_train_steps must be at least 1"),
        ({"beta_start": 0.0}, "beta_start"),
        ({"beta_start": 0.03}, "beta_start"),
        ({"beta_end": 1.0}, "beta_end"),
    ],
)
def test_bad_schedules_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiffusionConfig(**change)  # type: ignore[arg-type]


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("count", [1, 7, 1000])
def test_betas_are_those_of_diffusers(schedule: Any, count: int) -> None:
    config = DiffusionConfig(beta_schedule=schedule, num_train_steps=count)
    theirs = DDPMScheduler(num_train_timesteps=count, beta_start=1e-4, beta_end=0.02, beta_schedule=schedule).betas
    assert torch.equal(config.betas(), theirs.double())
    assert torch.equal(config.alphas_cumprod(), (1 - theirs.double()).cumprod(0))


def test_training_and_ddpm_sampling_import_no_diffusers() -> None:
    """diffusers takes seconds to import in every worker. An autoencoder needs it once a model is made."""
    check = (
        "import sys, causalfusion as c, causalfusion.weights.vae; "
        "from causalfusion.noise.samplers import make_sampler; "
        "c.DiffusionConfig().signal_and_noise_scales(); make_sampler('ddpm', c.DiffusionConfig(), 10); "
        "sys.exit('diffusers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
