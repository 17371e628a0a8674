"""DDPM and DDIM against ADM's arithmetic in numpy, and against diffusers where it visits the same times."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers import DDIMScheduler

from causalfusion import DiffusionConfig
from causalfusion.noise.diffusion import PREDICTION_TYPES, Prediction
from causalfusion.noise.samplers import Sampler, SamplerName, make_sampler, spaced_times

Array = npt.NDArray[np.float64]

PREDICTIONS: list[Prediction] = ["epsilon", "x0", "v"]


def adm_times(num_steps: int, num_train_steps: int = 1000) -> list[int]:
    """Return the times that ADM keeps, earliest first: a stride is added up in floating point, then rounded."""
    stride = (num_train_steps - 1) / (num_steps - 1) if num_steps > 1 else 1
    places = itertools.accumulate([0.0, *[stride] * (num_steps - 1)])
    return [round(place) for place in places]


class Adm(NamedTuple):
    """ADM's tables of a respaced process, earliest time first."""

    betas: Array
    posterior_variance: Array
    of_x0: Array
    of_x: Array
    cumprod: Array

    @property
    def fixed_large_log_variance(self) -> Array:
        """β, but for the first, which has the second's posterior variance."""
        log: Array = np.log(np.append(self.posterior_variance[1], self.betas[1:]))
        return log


def adm_tables(times: list[int], base_betas: Array) -> Adm:
    """Respace: β' = 1 − ᾱ_t/ᾱ_prev over the kept times; everything else follows from β' as from any β."""
    kept = np.cumprod(1.0 - base_betas)[times]
    betas = 1 - kept / np.append(1.0, kept[:-1])
    alphas = 1 - betas
    cumprod = np.cumprod(alphas)
    before = np.append(1.0, cumprod[:-1])
    return Adm(
        betas=betas,
        posterior_variance=betas * (1 - before) / (1 - cumprod),
        of_x0=betas * np.sqrt(before) / (1 - cumprod),
        of_x=(1 - before) * np.sqrt(alphas) / (1 - cumprod),
        cumprod=cumprod,
    )


def exact_betas() -> Array:
    return np.linspace(1e-4, 0.02, 1000)


def training_betas() -> Array:
    """The float32 numbers that diffusers, and so training, has."""
    betas: Array = torch.linspace(1e-4, 0.02, 1000).double().numpy()
    return betas


class Probe(NamedTuple):
    """What a step multiplies x, the prediction and the noise with; earliest time first."""

    of_x: Array
    of_prediction: Array
    of_noise: Array


def probe(sampler: Sampler) -> Probe:
    """Find the coefficients of every step from unit inputs; linearity is tested apart."""
    one, zero = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    rows = []
    for k in reversed(range(len(sampler.times))):
        noise = zero if k < sampler.noise_steps else None
        of_noise = 0.0 if noise is None else float(sampler.step(k, zero, zero, one))
        rows.append((float(sampler.step(k, zero, one, noise)), float(sampler.step(k, one, zero, noise)), of_noise))
    return Probe(*np.array(rows).T)


def test_times_are_those_that_adm_adds_up() -> None:
    """For every number of steps up to T; diffusers' linspace differs for 278 of them, 21 the first."""
    different = []
    for count in range(1, 1001):
        times = adm_times(count)
        assert spaced_times(1000, count) == times[::-1]
        if times != np.linspace(0, 999, count).round().astype(int).tolist():
            different.append(count)
    assert len(different) == 278
    assert different[:3] == [21, 23, 31]


@pytest.mark.parametrize(("train", "count"), [(1000, 0), (1000, 1001), (50, 51), (50, -1)])
@pytest.mark.parametrize("name", ["ddpm", "ddim"])
def test_impossible_numbers_of_steps_are_refused(name: SamplerName, train: int, count: int) -> None:
    with pytest.raises(ValueError, match=rf"diffusion steps must lie in \[1, {train}\], got {count}"):
        make_sampler(name, DiffusionConfig(num_train_steps=train), count)


def test_an_unknown_sampler_is_named() -> None:
    with pytest.raises(ValueError, match="unknown sampler 'euler'; samplers: ddpm, ddim"):
        make_sampler("euler", DiffusionConfig(), 10)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("base_betas", "tolerance"), [(exact_betas, 1e-6), (training_betas, 1e-11)], ids=["exact", "float32"]
)
@pytest.mark.parametrize("count", [2, 10, 21, 50, 250, 999, 1000])
def test_respaced_ddpm_is_adms(count: int, base_betas: Callable[[], Array], tolerance: float) -> None:
    """β' and the fixed-large log variance from the noise, mean coefficients from the rest.

    diffusers rounds β to float32, which alone is the difference to ADM's tables: 1e-7.
    """
    sampler = make_sampler("ddpm", DiffusionConfig(), count)
    expected, found = adm_tables(adm_times(count), base_betas()), probe(sampler)
    assert sampler.times == adm_times(count)[::-1]
    noise = found.of_noise[1:]  # the last step, to the data, adds none
    assert found.of_noise[0] == 0
    np.testing.assert_allclose(noise**2, expected.betas[1:], rtol=tolerance)
    np.testing.assert_allclose(2 * np.log(noise), expected.fixed_large_log_variance[1:], rtol=tolerance)
    # x̂_0 = x / √ᾱ − √(1/ᾱ − 1) ε
    np.testing.assert_allclose(
        found.of_x, expected.of_x0 * np.sqrt(1 / expected.cumprod) + expected.of_x, rtol=tolerance
    )
    np.testing.assert_allclose(
        found.of_prediction, -expected.of_x0 * np.sqrt(1 / expected.cumprod - 1), rtol=tolerance
    )


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("count", [10, 250])
def test_fixed_small_variance_and_every_prediction_are_adms(count: int, prediction: Prediction) -> None:
    """The posterior's variance β' (1−ᾱ_prev) / (1−ᾱ); its mean in terms of ε, x_0 or v."""
    config = DiffusionConfig(prediction=prediction, variance="fixed_small")
    expected, found = adm_tables(adm_times(count), training_betas()), probe(make_sampler("ddpm", config, count))
    signal, sigma = np.sqrt(expected.cumprod), np.sqrt(1 - expected.cumprod)
    # x̂_0 as a combination of x_t and the prediction
    x0_of_x, x0_of_prediction = {
        "epsilon": (1 / signal, -sigma / signal),
        "x0": (np.zeros(count), np.ones(count)),
        "v": (signal, -sigma),
    }[prediction]
    np.testing.assert_allclose(found.of_noise[1:] ** 2, expected.posterior_variance[1:], rtol=1e-11)
    np.testing.assert_allclose(found.of_x, expected.of_x0 * x0_of_x + expected.of_x, rtol=1e-11, atol=1e-15)
    np.testing.assert_allclose(found.of_prediction, expected.of_x0 * x0_of_prediction, rtol=1e-11)


@pytest.mark.parametrize("variance", ["fixed_large", "fixed_small"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("count", [10, 50, 250])
def test_ddpm_steps_as_diffusers_does(count: int, prediction: Prediction, variance: str) -> None:
    """Every step of diffusers' DDPMScheduler on float64 tables, where its linspace gives ADM's times."""
    config = DiffusionConfig(prediction=prediction, variance=variance)  # type: ignore[arg-type]
    scheduler, sampler = config.scheduler(), make_sampler("ddpm", config, count)
    scheduler.set_timesteps(count)
    assert scheduler.timesteps.tolist() == sampler.times
    assert sampler.noise_steps == count - 1
    x, out = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for k, t in enumerate(sampler.times):
        expected = scheduler.step(out, t, x, generator=torch.Generator().manual_seed(k)).prev_sample
        noise = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(k), dtype=torch.float64)
        found = sampler.step(k, out, x, noise if k < sampler.noise_steps else None)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12 * float(expected.abs().max()))


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize("count", [1, 4, 50])
def test_ddim_steps_as_diffusers_does(
    monkeypatch: pytest.MonkeyPatch, count: int, spacing: str, prediction: Prediction
) -> None:
    """The rule on diffusers' own times, which its steps of T // n meet where n divides T."""
    config = DiffusionConfig(prediction=prediction)
    scheduler = DDIMScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing=spacing,
        prediction_type=PREDICTION_TYPES[prediction],
    )
    scheduler.alphas_cumprod = torch.from_numpy(np.cumprod(1 - training_betas()))
    scheduler.set_timesteps(count)
    times = scheduler.timesteps.tolist()
    monkeypatch.setattr("causalfusion.noise.samplers.spaced_times", lambda *_: times)
    sampler = make_sampler("ddim", config, count)
    assert (sampler.times, sampler.noise_steps) == (times, 0)
    x, out = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for k, t in enumerate(times):
        expected = scheduler.step(out, t, x).prev_sample
        torch.testing.assert_close(
            sampler.step(k, out, x, None), expected, rtol=0, atol=1e-12 * float(expected.abs().max())
        )


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("count", [1, 2, 7, 21, 250])
def test_ddim_recovers_a_point_from_its_exact_noise(count: int, prediction: Prediction) -> None:
    """x_t = √ᾱ_t x_0 + √(1−ᾱ_t) ε with one ε all the way, and x_0 at the end, in any number of steps."""
    cumprod = np.cumprod(1 - training_betas())
    x0, noise = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sampler = make_sampler("ddim", DiffusionConfig(prediction=prediction), count)

    def at(t: int) -> torch.Tensor:
        x: torch.Tensor = float(np.sqrt(cumprod[t])) * x0 + float(np.sqrt(1 - cumprod[t])) * noise
        return x

    x = at(sampler.times[0])
    for k, t in enumerate(sampler.times):
        torch.testing.assert_close(x, at(t), rtol=0, atol=1e-10)
        signal, sigma = float(np.sqrt(cumprod[t])), float(np.sqrt(1 - cumprod[t]))
        out = {"epsilon": (x - signal * x0) / sigma, "x0": x0, "v": signal * noise - sigma * x0}[prediction]
        x = sampler.step(k, out, x, None)
    torch.testing.assert_close(x, x0, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["ddpm", "ddim"])
def test_a_step_is_linear_and_clips_nothing(name: SamplerName) -> None:
    """Latents are not bounded by 1: x, prediction and noise times 1000 gives the result times 1000."""
    sampler = make_sampler(name, DiffusionConfig(), 10)
    x, out, noise = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    once, thousand = (sampler.step(5, out * k, x * k, noise * k) for k in (1.0, 1000.0))
    torch.testing.assert_close(thousand, 1000 * once, rtol=1e-12, atol=0)
    parts = (
        sampler.step(5, out, 0 * x, None)
        + sampler.step(5, 0 * out, x, None)
        + sampler.step(5, 0 * out, 0 * x, noise)
    )
    torch.testing.assert_close(once, parts, rtol=0, atol=1e-12)
