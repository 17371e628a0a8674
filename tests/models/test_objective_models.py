"""Which models an objective trains: time tokens, and the AdaLN-zero DiT of Table 1."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.models.random_models import dit_config, random_dit

from causalfusion import (
    CausalFusion,
    CausalFusionConfig,
    DiffusionConfig,
    DiTConfig,
    Draws,
    Objective,
    ObjectiveConfig,
    draw,
)
from causalfusion.noise.diffusion import Prediction
from causalfusion.objective import check_objective

ONE_STEP: list[dict[str, Any]] = [{"num_ar_steps": 1}, {"ar_decay": 0.0}, {"num_ar_steps": 1, "ar_decay": 1.0}]
MANY_TIMES: list[dict[str, Any]] = [{"time_copies": 2}, {"time_sampling": "per_step"}]


@pytest.mark.parametrize("options", [*ONE_STEP, {}, {"num_ar_steps": 4}, {"sequence_multiple": 64}])
def test_a_time_token_trains_with_any_split(
    make_config: Callable[..., CausalFusionConfig], options: dict[str, Any]
) -> None:
    check_objective(make_config(time_conditioning="token"), ObjectiveConfig(**options))


@pytest.mark.parametrize("options", MANY_TIMES)
def test_a_time_token_is_refused_several_times(
    make_config: Callable[..., CausalFusionConfig], options: dict[str, Any]
) -> None:
    """One token carries one diffusion time; when the objective is made, not after hours in a queue."""
    config = make_config(time_conditioning="token")
    message = r"a time token carries one diffusion time per sample: use objective\.time_sampling=shared"
    with pytest.raises(ValueError, match=message):
        Objective(CausalFusion(config), ObjectiveConfig(**options), DiffusionConfig())
    Objective(CausalFusion(make_config()), ObjectiveConfig(**options), DiffusionConfig())


@pytest.mark.parametrize("options", ONE_STEP)
def test_dit_trains_with_one_step(options: dict[str, Any]) -> None:
    check_objective(dit_config(in_channels=2), ObjectiveConfig(**options))


@pytest.mark.parametrize(
    "options", [{}, {"ar_decay": 1.0}, {"num_ar_steps": 2}, {"num_ar_steps": 2, "ar_decay": 0.0}]
)
def test_dit_is_refused_ar_steps(options: dict[str, Any]) -> None:
    """γ = 0 is no way round a fixed number of steps, which it has no part in."""
    with pytest.raises(ValueError, match=r"DiT has no AR steps: train it with objective\.num_ar_steps=1"):
        Objective(random_dit(in_channels=2), ObjectiveConfig(**options), DiffusionConfig())


@pytest.mark.parametrize("options", MANY_TIMES)
def test_dit_is_refused_several_times(options: dict[str, Any]) -> None:
    with pytest.raises(
        ValueError, match=r"DiT has one diffusion time per sample: use objective\.time_sampling=shared"
    ):
        Objective(random_dit(in_channels=2), ObjectiveConfig(num_ar_steps=1, **options), DiffusionConfig())


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize("learn_sigma", [True, False])
@pytest.mark.parametrize("multiple", [1, 64])
def test_dit_against_a_direct_computation(prediction: Prediction, learn_sigma: bool, multiple: int) -> None:
    """λ times the mean squared error of whole images in raster order; the same gradients.

    The variance, and classes that are not in the batch, have none.
    """
    model, diffusion = random_dit(in_channels=2, learn_sigma=learn_sigma), DiffusionConfig(prediction=prediction)
    options = ObjectiveConfig(num_ar_steps=1, ar_weight=2.0, class_dropout=0.5, sequence_multiple=multiple)
    drawn = draw(model.config, options, diffusion, seed=2, step=0, samples=range(4))
    assert 0 < int(drawn.dropped.sum()) < 4
    latents = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([0, 1, 0, 1])
    parameters = dict(model.named_parameters())
    loss = Objective(model, options, diffusion)(model, latents, labels, drawn)
    found = torch.autograd.grad(loss.weighted, list(parameters.values()))

    t, noise = drawn.times.view(4), drawn.noise[:, 0].double()
    signal, sigma = (scale.double()[t].view(4, 1, 1, 1) for scale in diffusion.signal_and_noise_scales())
    noised = model.patchify(signal * latents + sigma * noise)
    classes = model.class_embed(torch.where(drawn.dropped, 3, labels))
    out = model.unpatchify(model.predict(noised, torch.arange(16).expand(4, -1), t, classes))
    target = noise if prediction == "epsilon" else signal * noise - sigma * latents
    expected = 2 * (out - target).square().mean()
    torch.testing.assert_close(loss.weighted, expected, rtol=1e-12, atol=0)
    assert float(loss.mse) == pytest.approx(float(expected.detach()) / 2, rel=1e-12)
    gradients = torch.autograd.grad(expected, list(parameters.values()))
    for name, own, direct in zip(parameters, found, gradients, strict=True):
        torch.testing.assert_close(own, direct, rtol=1e-12, atol=1e-12)
        assert float(own.abs().max()) > 1e-6, name
    table = dict(zip(parameters, found, strict=True))["class_embed.weight"]
    present = set(torch.where(drawn.dropped, 3, labels).tolist())
    assert {row for row in range(4) if table[row].any()} == present


def test_dit_and_an_in_context_dit_draw_alike(make_config: Callable[..., CausalFusionConfig]) -> None:
    """Table 1 compares models, not luck: the same seed gives both the same noise, times and orders."""
    options, diffusion = ObjectiveConfig(ar_decay=0.0), DiffusionConfig()

    def drawn(config: CausalFusionConfig | DiTConfig) -> Draws:
        return draw(config, options, diffusion, seed=3, step=1, samples=range(4))

    one, other = drawn(dit_config(in_channels=2)), drawn(make_config(in_channels=2))
    for field in dataclasses.fields(Draws):
        left, right = getattr(one, field.name), getattr(other, field.name)
        assert left == right if field.name == "sizes" else torch.equal(left, right)
