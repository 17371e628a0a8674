"""The noise process against ADM's arithmetic in float64."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import stats

from causalfusion import DiffusionConfig
from causalfusion.diffusion import add_noise, sample_times

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


@pytest.mark.parametrize("shape", [(3,), (3, 5), (3, 2, 4, 4)])
def test_add_noise_against_the_closed_form(shape: tuple[int, ...]) -> None:
    """x_t = √ᾱ_t x_0 + √(1−ᾱ_t) ε, with each sample's own t."""
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    times = [0, 400, 999]
    found = add_noise(x0, noise, torch.tensor(times), DiffusionConfig().signal_and_noise_scales())
    assert found.dtype == torch.float64
    for i, t in enumerate(times):
        alpha = adm_alphas_cumprod()[t]
        expected = np.sqrt(alpha) * x0[i].numpy() + np.sqrt(1 - alpha) * noise[i].numpy()
        np.testing.assert_allclose(found[i].numpy(), expected, rtol=0, atol=1e-6)


def test_add_noise_keeps_the_type_of_the_data() -> None:
    x0 = torch.zeros(2, 3, dtype=torch.bfloat16)
    noise = torch.ones(2, 3, dtype=torch.bfloat16)
    scales = DiffusionConfig().signal_and_noise_scales()
    assert add_noise(x0, noise, torch.tensor([0, 999]), scales).dtype == torch.bfloat16


def test_times_are_uniform_and_one_per_generator() -> None:
    generator = torch.Generator().manual_seed(0)
    times = sample_times(10, [generator] * 3000)
    assert times.dtype == torch.int64
    assert stats.chisquare(torch.bincount(times, minlength=10).numpy()).pvalue > 1e-3
    assert times.shape == (3000,)
    alone = [sample_times(1000, [torch.Generator().manual_seed(i)]).item() for i in range(4)]
    assert sample_times(1000, [torch.Generator().manual_seed(i) for i in range(4)]).tolist() == alone


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
