"""DPM-Solver++ and UniPC on data whose ε and probability flow are known; all samplers with all predictions."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from causalfusion import CausalFusion, DiffusionConfig, SamplingConfig, sample
from causalfusion.noise.diffusion import Prediction
from causalfusion.noise.samplers import SamplerName, make_sampler
from causalfusion.transformer import CausalFusionContext

ModelMaker = Callable[..., CausalFusion]

CUMPROD = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
SOLVERS: list[SamplerName] = ["dpm-solver++", "unipc"]
SAMPLERS: list[SamplerName] = ["ddpm", "ddim", *SOLVERS]

# Data ~ N(MEAN, SPREAD²): x_t ~ N(√ᾱ MEAN, ᾱ SPREAD² + 1 − ᾱ), and the flow keeps each point's quantile.
MEAN, SPREAD = 0.7, 0.4
START = torch.linspace(-2.5, 2.5, 41, dtype=torch.float64)[None, :, None]


def law(level: float) -> tuple[float, float]:
    """Return mean and standard deviation of x where ᾱ = level."""
    return math.sqrt(level) * MEAN, math.sqrt(level * SPREAD**2 + 1 - level)


def flow(level: float) -> Tensor:
    """Return where the probability flow brings the starting points."""
    (first_mean, first_deviation), (mean, deviation) = law(CUMPROD[999]), law(level)
    return mean + deviation * (START - first_mean) / first_deviation


def exact_epsilon(x: Tensor, t: int) -> Tensor:
    """Return E[ε | x_t = x] = −√(1−ᾱ) ∇ log p_t(x)."""
    mean, deviation = law(CUMPROD[t])
    return math.sqrt(1 - CUMPROD[t]) * (x - mean) / deviation**2


def solve(name: SamplerName, steps: int) -> tuple[dict[int, float], float]:
    """Return the largest error at each visited time, and at the end."""
    sampler = make_sampler(name, DiffusionConfig(), steps)
    x, errors = START, {}
    for k, t in enumerate(sampler.times):
        errors[t] = float((x - flow(CUMPROD[t])).abs().max())
        x = sampler.step(k, exact_epsilon(x, t), x, None)
    return errors, float((x - flow(1.0)).abs().max())


@pytest.mark.parametrize("name", SOLVERS)
def test_solvers_follow_the_flow_of_gaussian_data(name: SamplerName) -> None:
    """Half-way, at t = 500, twice the steps give a quarter of the error or less; DDIM gives half.

    At the end, where the step to σ = 0 is one of first order, errors of data 0.4 wide still fall below 0.004.
    """
    half_way = {steps: solve(name, steps)[0][500] for steps in (10, 20, 40)}
    assert half_way[20] < 1e-3
    assert half_way[10] / half_way[20] > 3.2
    assert half_way[20] / half_way[40] > 3.2
    ends = [solve(name, steps)[1] for steps in (10, 20, 40, 80)]
    assert ends == sorted(ends, reverse=True)
    assert ends[1] < 0.1
    assert ends[3] < 4e-3


def test_ddim_follows_the_flow_in_first_order() -> None:
    """One more proof that the tests above can tell the orders apart: errors halve, and are larger."""
    errors = {steps: solve("ddim", steps) for steps in (20, 40, 80)}
    near = [min(errors[steps][0].items(), key=lambda item: abs(item[0] - 510))[1] for steps in (20, 40, 80)]
    assert 1.5 < near[0] / near[1] < 2.5
    assert near[0] > 2e-3
    ends = [errors[steps][1] for steps in (20, 40, 80)]
    assert 1.8 < ends[0] / ends[1] < 2.2
    assert 1.8 < ends[1] / ends[2] < 2.2


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("name", SOLVERS)
def test_any_number_of_steps_below_t_is_solved(name: SamplerName, schedule: str) -> None:
    """Distinct times, finite results; with T steps two times would coincide, which is refused."""
    config = DiffusionConfig(num_train_steps=12, beta_schedule=schedule)  # type: ignore[arg-type]
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    for steps in range(1, 12):
        sampler, out = make_sampler(name, config, steps), x
        assert len(set(sampler.times)) == len(sampler.times) == steps
        assert sampler.times[0] == 11
        for k in range(steps):
            out = sampler.step(k, 0.5 * out, out, None)
        assert bool(out.isfinite().all())
    for steps in (0, 12, 13):
        with pytest.raises(ValueError, match=rf"diffusion steps must lie in \[1, 11\], got {steps}"):
            make_sampler(name, config, steps)


def test_solvers_start_afresh_in_each_ar_step(make_model: ModelMaker) -> None:
    """A multistep solver remembers predictions: those of the AR step before must not enter."""
    model = make_model()
    for name in SOLVERS:
        found = [
            model.patchify(
                sample(
                    model,
                    torch.tensor([1]),
                    SamplingConfig(
                        step_sizes=sizes,
                        num_inference_steps=4,
                        sampler=name,
                        patch_order="raster",
                        guidance_scale=1.5,
                    ),
                    DiffusionConfig(),
                    seed=0,
                )
            )
            for sizes in ((8, 8), (8, 4, 4))
        ]
        assert all(bool(x.isfinite().all()) for x in found)
        torch.testing.assert_close(found[0][:, :8], found[1][:, :8], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_is_decided_by_its_seed(make_model: ModelMaker, name: SamplerName) -> None:
    model = make_model()
    config = SamplingConfig(num_ar_steps=3, num_inference_steps=5, sampler=name, guidance_scale=2.0)
    one, same, other = (
        sample(model, torch.tensor([1, 2]), config, DiffusionConfig(), seed=seed) for seed in (0, 0, 1)
    )
    assert torch.equal(one, same)
    assert bool(one.isfinite().all())
    assert float((one - other).abs().max()) > 1e-3 * float(one.abs().max())


def test_samplers_differ(make_model: ModelMaker) -> None:
    """A name that were ignored would pass most tests."""
    model = make_model()
    found = [
        sample(
            model,
            torch.tensor([1]),
            SamplingConfig(num_inference_steps=8, sampler=name),
            DiffusionConfig(),
            seed=0,
        )
        for name in SAMPLERS
    ]
    for i, one in enumerate(found):
        for other in found[:i]:
            assert float((one - other).abs().max()) > 1e-3 * float(one.abs().max())


@pytest.mark.parametrize("name", SAMPLERS)
def test_what_the_network_predicts_does_not_matter_if_it_says_the_same(
    make_model: ModelMaker, monkeypatch: pytest.MonkeyPatch, name: SamplerName
) -> None:
    """One network's ε, given as x_0 = (x − σ ε) / √ᾱ or as v = √ᾱ ε − σ x_0, makes the same samples."""
    model = make_model()
    with torch.no_grad():
        model.head.weight.mul_(0.2)
        model.head.bias.mul_(0.2)
    predict = CausalFusionContext.predict
    cumprod = np.cumprod(1 - torch.linspace(1e-4, 0.02, 1000).double().numpy())

    def samples(prediction: Prediction) -> Tensor:
        def consistent(self: CausalFusionContext, x: Tensor, positions: Tensor, t: Tensor) -> Tensor:
            epsilon = predict(self, x, positions, t)
            signal, sigma = math.sqrt(cumprod[int(t)]), math.sqrt(1 - cumprod[int(t)])
            x0 = (x - sigma * epsilon) / signal
            return {"epsilon": epsilon, "x0": x0, "v": signal * epsilon - sigma * x0}[prediction]

        config = SamplingConfig(num_ar_steps=2, num_inference_steps=6, sampler=name, guidance_scale=1.5)
        with monkeypatch.context() as patched:
            patched.setattr(CausalFusionContext, "predict", consistent)
            return sample(model, torch.tensor([0, 2]), config, DiffusionConfig(prediction=prediction), seed=0)

    of_epsilon, of_x0, of_v = (samples(prediction) for prediction in ("epsilon", "x0", "v"))
    scale = float(of_epsilon.abs().max())
    tolerance = 1e-10 if name in ("ddpm", "ddim") else 1e-5  # diffusers' solvers compute in float32
    torch.testing.assert_close(of_x0, of_epsilon, rtol=0, atol=tolerance * scale)
    torch.testing.assert_close(of_v, of_epsilon, rtol=0, atol=tolerance * scale)
