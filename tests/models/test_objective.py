"""The training objective: draws and loss (Eq. 4 and 5, Section 5)."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, get_args

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from causalfusion import (
    CausalFusion,
    CausalFusionConfig,
    DiffusionConfig,
    Draws,
    Objective,
    ObjectiveConfig,
    draw,
)
from causalfusion.attention.plan import AttentionPlan
from causalfusion.factorization.sequence import lay_out
from causalfusion.noise.diffusion import Prediction
from causalfusion.objective import WeightAxis, draw_split

if TYPE_CHECKING:
    from tests.models.conftest import TrainingExample

ConfigMaker = Callable[..., CausalFusionConfig]
ModelMaker = Callable[..., CausalFusion]
ExampleMaker = Callable[..., "TrainingExample"]


def weight_in_words(sizes: list[int], step: int, ar_weight: float, along: str) -> float:
    """Return w(s), s counted from 0, from the definition of either linear reading."""
    if len(sizes) == 1:
        return ar_weight
    if along == "step":  # linear in s through (s = 1, λ) and (s = S, 1)
        return ar_weight + (1 - ar_weight) * step / (len(sizes) - 1)
    return ar_weight - (ar_weight - 1) * sum(sizes[:step]) / sum(sizes)


class Recorder:
    """A predictor that keeps what it is called with and answers a fixed tensor."""

    def __init__(self, answer: Tensor) -> None:
        self.answer = answer
        self.seen: dict[str, Tensor] = {}
        self.plan: AttentionPlan | None = None

    def __call__(
        self, noised: Tensor, clean: Tensor, positions: Tensor, t: Tensor, labels: Tensor, plan: AttentionPlan
    ) -> Tensor:
        names = ("noised", "clean", "positions", "t", "labels")
        self.seen = dict(zip(names, (noised, clean, positions, t, labels), strict=True))
        self.plan = plan
        return self.answer


def patch(image: Tensor, position: int) -> list[float]:
    """Return the numbers of one 2×2 patch of a (channels, 8, 8) image, channels fastest."""
    y, x = divmod(position, 4)
    return [float(image[c, 2 * y + p, 2 * x + q]) for p in range(2) for q in range(2) for c in range(len(image))]


SIZES = [3, 1, 7, 5]


@pytest.mark.parametrize("along", get_args(WeightAxis))
def test_loss_against_loops(make_model: ModelMaker, make_example: ExampleMaker, along: WeightAxis) -> None:
    """The loss is the mean of w(s) (ε − ε̂)² over samples, steps, tokens and numbers."""
    model = make_model(in_channels=2)
    example = make_example(model.config, SIZES)
    answer = torch.randn(3, 16, 8, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    config = ObjectiveConfig(ar_weight=2.5, ar_weight_along=along)
    loss = Objective(model, config, DiffusionConfig())(Recorder(answer), *example)

    weighted, count = 0.0, 0
    errors = [0.0] * 16
    for sample in range(3):
        token = 0
        for step, size in enumerate(SIZES):
            for _ in range(size):
                target = patch(example.drawn.noise[sample, 0], int(example.drawn.orders[sample, token]))
                for number, value in enumerate(target):
                    squared = (value - float(answer[sample, token, number])) ** 2
                    weighted += weight_in_words(SIZES, step, 2.5, along) * squared
                    errors[token] += squared / (3 * 8)
                    count += 1
                token += 1
    assert count == 3 * 16 * 8
    assert float(loss.weighted) == pytest.approx(weighted / count, rel=1e-7)  # the weights are float32
    np.testing.assert_allclose(loss.error_L.numpy(), errors, rtol=1e-12)
    assert float(loss.mse) == pytest.approx(sum(errors) / 16, rel=1e-12)


def test_the_loss_is_computed_in_float32_at_least(make_model: ModelMaker, make_example: ExampleMaker) -> None:
    """A bf16 prediction is compared with the data in float32: 1 + 2⁻¹² is a target that bf16 does not have."""
    model = make_model()
    example = make_example(model.config, SIZES)
    objective = Objective(model, ObjectiveConfig(ar_weight=1.0), DiffusionConfig())
    drawn = dataclasses.replace(example.drawn, noise=torch.full((3, 1, 1, 8, 8), 1 + 2.0**-12))
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        ones = torch.ones(3, 16, 4, dtype=dtype)
        loss = objective(Recorder(ones), example.latents.float(), example.labels, drawn)
        assert loss.weighted.dtype == loss.error_L.dtype == expected
        assert loss.error_L.tolist() == [2.0**-24] * 16


def test_what_the_model_is_given(make_model: ModelMaker, make_example: ExampleMaker) -> None:
    """Eq. 5: x_t and x_0 in visiting order, x_0 without the last step, t shared, dropped classes null."""
    model = make_model(in_channels=2)
    latents, labels, drawn = make_example(model.config, SIZES)
    predict = Recorder(torch.zeros(3, 16, 8))
    Objective(model, ObjectiveConfig(), DiffusionConfig())(predict, latents, labels, drawn)
    seen = predict.seen
    cumprod = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    assert seen["noised"].shape == (3, 16, 8)
    assert seen["clean"].shape == (3, 11, 8)
    for sample in range(3):
        alpha = cumprod[int(drawn.times[sample])]
        for token, position in enumerate(drawn.orders[sample].tolist()):
            x0 = np.array(patch(latents[sample], position))
            noise = np.array(patch(drawn.noise[sample, 0], position))
            expected = np.sqrt(alpha) * x0 + np.sqrt(1 - alpha) * noise
            np.testing.assert_allclose(seen["noised"][sample, token].numpy(), expected, rtol=0, atol=2e-6)
            if token < 11:
                np.testing.assert_array_equal(seen["clean"][sample, token].numpy(), x0)
    assert torch.equal(seen["positions"], drawn.orders)
    assert torch.equal(seen["t"], drawn.times[:, 0, 0])
    assert labels.tolist() == [2, 0, 1]
    assert seen["labels"].tolist() == [2, 3, 1]
    assert predict.plan is not None
    layout = lay_out(SIZES, class_tokens=2)
    assert torch.equal(predict.plan.places, torch.stack([layout.segments, layout.steps]).int())
    assert (predict.plan.num_context, predict.plan.num_tokens, predict.plan.copies) == (13, 16, 1)


def test_one_step_gives_no_clean_tokens(make_model: ModelMaker, make_example: ExampleMaker) -> None:
    model = make_model()
    predict = Recorder(torch.zeros(3, 16, 4, dtype=torch.float64))
    objective = Objective(model, ObjectiveConfig(ar_weight=3.0), DiffusionConfig())
    loss = objective(predict, *make_example(model.config, [16]))
    assert predict.seen["clean"].shape == (3, 0, 4)
    assert float(loss.weighted) == pytest.approx(3 * float(loss.mse), rel=1e-12)


@pytest.mark.parametrize("prediction", get_args(Prediction))
@pytest.mark.parametrize("per_step", [False, True])
@pytest.mark.parametrize("copies", [1, 2])
def test_a_perfect_predictor_has_no_loss(
    make_model: ModelMaker, make_example: ExampleMaker, prediction: Prediction, per_step: bool, copies: int
) -> None:
    """ε = (x_t − √ᾱ x_0) / √(1−ᾱ), x_0, or v = (√ᾱ x_t − x_0) / √(1−ᾱ), from what the model is given and x_0.

    The predictor of another kind does have a loss.
    """
    model, diffusion = make_model(), DiffusionConfig(prediction=prediction)
    example = make_example(model.config, SIZES, copies=copies, per_step=per_step)
    signals, sigmas = (scale.double() for scale in diffusion.signal_and_noise_scales())

    def perfect(kind: str) -> Callable[..., Tensor]:
        def predict(
            noised: Tensor, clean: Tensor, positions: Tensor, t: Tensor, labels: Tensor, plan: AttentionPlan
        ) -> Tensor:
            del clean, labels, plan
            patches = model.patchify(example.latents)
            x0 = torch.stack([own[order] for own, order in zip(patches, positions, strict=True)])
            x0 = torch.cat([x0] * copies, dim=1)
            t = t.view(3, -1).repeat_interleave(noised.shape[1] * 3 // t.numel(), dim=1)
            signal, sigma = signals[t][..., None], sigmas[t][..., None]
            unit = signal**2 + sigma**2  # but for float32's rounding
            v = (signal * noised - unit * x0) / sigma
            return {"epsilon": (noised - signal * x0) / sigma, "x0": x0, "v": v}[kind]

        return predict

    objective = Objective(model, ObjectiveConfig(), diffusion)
    for kind in get_args(Prediction):
        loss = objective(perfect(kind), *example)
        if kind == prediction:
            assert float(loss.mse) < 1e-20
            assert float(loss.weighted) < 1e-20
        else:
            assert float(loss.mse) > 0.1


def test_a_model_that_predicts_zero_loses_the_noises_variance(make_config: ConfigMaker) -> None:
    """E[ε²] = 1, and E[w ε²] is the mean of w; within 4 standard errors of a mean of squares."""
    config = make_config()
    objective, diffusion = ObjectiveConfig(num_ar_steps=4, ar_weight=2.0), DiffusionConfig()
    model = CausalFusion(config)
    drawn = draw(config, objective, diffusion, seed=0, step=0, samples=range(64))
    latents, labels = torch.randn(64, 1, 8, 8), torch.zeros(64, dtype=torch.int64)
    loss = Objective(model, objective, diffusion)(model, latents, labels, drawn)
    error = math.sqrt(2 / (64 * 64))
    assert abs(float(loss.mse) - 1) < 4 * error
    assert abs(float(loss.weighted.detach()) - 1.5) < 2 * 4 * error
    assert loss.weighted.requires_grad
    assert not loss.mse.requires_grad


def same_draws(one: Draws, other: Draws) -> bool:
    return one.sizes == other.sizes and all(
        torch.equal(getattr(one, name), getattr(other, name)) for name in ("orders", "times", "noise", "dropped")
    )


def test_draws_do_not_depend_on_the_grouping_of_samples(make_config: ConfigMaker) -> None:
    """Eight samples on one rank, or four on each of two, or eight ranks: the same draws, the same split."""
    config, objective, diffusion = make_config(), ObjectiveConfig(class_dropout=0.5), DiffusionConfig()

    def drawn(samples: range) -> Draws:
        return draw(config, objective, diffusion, seed=7, step=3, samples=samples)

    whole = drawn(range(8))
    for size in (4, 2, 1):
        parts = [drawn(range(i, i + size)) for i in range(0, 8, size)]
        joined = Draws(
            sizes=parts[-1].sizes,
            orders=torch.cat([part.orders for part in parts]),
            times=torch.cat([part.times for part in parts]),
            noise=torch.cat([part.noise for part in parts]),
            dropped=torch.cat([part.dropped for part in parts]),
        )
        assert same_draws(joined, whole)
        assert all(part.sizes == whole.sizes for part in parts)
    assert 0 < int(whole.dropped.sum()) < 8


def test_draws_have_the_shapes_of_the_model(make_config: ConfigMaker) -> None:
    config = make_config(in_channels=3)
    drawn = draw(config, ObjectiveConfig(), DiffusionConfig(), seed=0, step=0, samples=range(5))
    assert drawn.orders.shape == (5, 16)
    assert drawn.times.shape == (5, 1, 1)
    assert drawn.dropped.shape == (5,)
    assert drawn.noise.shape == (5, 1, 3, 8, 8)
    assert drawn.times.dtype == torch.int64
    assert drawn.noise.dtype == torch.float32
    assert drawn.dropped.dtype == torch.bool


def test_samples_seeds_and_steps_have_draws_of_their_own(make_config: ConfigMaker) -> None:
    """A sample's draws follow its number and the seed; the split follows the step and the seed."""
    config, objective, diffusion = make_config(), ObjectiveConfig(ar_decay=1.0), DiffusionConfig()

    def drawn(seed: int, step: int, first: int) -> Draws:
        return draw(config, objective, diffusion, seed=seed, step=step, samples=range(first, first + 2))

    base = drawn(0, 0, 0)
    assert same_draws(base, drawn(0, 0, 0))
    assert not torch.equal(base.noise[0], base.noise[1])
    assert not torch.equal(base.noise, drawn(1, 0, 0).noise)
    assert not torch.equal(base.noise, drawn(0, 0, 2).noise)
    assert torch.equal(base.noise, drawn(0, 1, 0).noise)
    assert len({tuple(drawn(0, step, 0).sizes) for step in range(20)}) > 10
    assert {tuple(drawn(seed, 0, 0).sizes) for seed in range(20)} != {tuple(base.sizes)}


def test_marginal_laws_of_the_draws(make_config: ConfigMaker) -> None:
    """Class dropout has its rate, times are uniform, noise is standard normal, over samples' own streams."""
    config = make_config(input_size=4)
    objective, diffusion = ObjectiveConfig(class_dropout=0.1), DiffusionConfig()
    drawn = draw(config, objective, diffusion, seed=0, step=0, samples=range(3000))
    assert stats.binomtest(int(drawn.dropped.sum()), 3000, 0.1).pvalue > 1e-3
    assert stats.chisquare(torch.bincount(drawn.times.flatten() // 100, minlength=10).numpy()).pvalue > 1e-3
    assert stats.kstest(drawn.noise.flatten().numpy(), "norm").pvalue > 1e-3
    assert stats.chisquare(torch.bincount(drawn.orders[:, 0], minlength=4).numpy()).pvalue > 1e-3


@pytest.mark.parametrize(("dropout", "expected"), [(0.0, set()), (0.999, {True})])
def test_extreme_class_dropout(make_config: ConfigMaker, dropout: float, expected: set[bool]) -> None:
    objective = ObjectiveConfig(class_dropout=dropout)
    drawn = draw(make_config(), objective, DiffusionConfig(), seed=0, step=0, samples=range(50))
    assert set(drawn.dropped.tolist()) - {False} == expected


@pytest.mark.parametrize("decay", [0.7, 1.0])
def test_splits_over_training_steps_follow_the_decayed_law(decay: float) -> None:
    """Section 5: P(S = i) ∝ γ^(i−1), over the optimizer steps of a run."""
    config, count = ObjectiveConfig(ar_decay=decay), 2000
    splits = [draw_split(config, 8, 0, step) for step in range(count)]
    assert all(sum(sizes) == 8 and min(sizes) >= 1 for sizes in splits)
    drawn = Counter(len(sizes) for sizes in splits)
    weights = [decay**i for i in range(8)]
    expected = [count * weight / sum(weights) for weight in weights]
    assert stats.chisquare([drawn[i] for i in range(1, 9)], expected).pvalue > 1e-3


def test_full_decay_always_has_one_step() -> None:
    assert {tuple(draw_split(ObjectiveConfig(ar_decay=0.0), 8, 0, step)) for step in range(100)} == {(8,)}


def test_a_fixed_number_of_steps_has_equal_sizes() -> None:
    """Section 4 and Table 2: |κ| = L / S."""
    for steps in (1, 2, 4, 8, 256):
        for step in range(3):
            assert draw_split(ObjectiveConfig(num_ar_steps=steps), 256, 0, step) == [256 // steps] * steps


def test_more_steps_than_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must lie in \[1, 16\]"):
        draw_split(ObjectiveConfig(num_ar_steps=17), 16, 0, 0)


def test_patch_order_is_passed_on(make_config: ConfigMaker) -> None:
    for order, first in (("raster", [0, 1, 2, 3]), ("blockwise", [0, 1, 4, 5]), ("dilated", [0, 2, 8, 10])):
        objective = ObjectiveConfig(patch_order=order, order_block=2)  # type: ignore[arg-type]
        drawn = draw(make_config(), objective, DiffusionConfig(), seed=0, step=0, samples=range(2))
        assert drawn.orders[:, :4].tolist() == [first] * 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ar_decay": -0.1}, "ar_decay"),
        ({"ar_decay": 1.1}, "ar_decay"),
        ({"num_ar_steps": 0}, "num_ar_steps"),
        ({"ar_weight": 0.9}, "ar_weight"),
        ({"time_copies": 0}, "time_copies"),
        ({"sequence_multiple": 0}, "sequence_multiple"),
        ({"class_dropout": 1.0}, "class_dropout"),
        ({"class_dropout": -0.1}, "class_dropout"),
    ],
)
def test_options_out_of_range_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ObjectiveConfig(**changes)  # type: ignore[arg-type]


def test_defaults_are_the_papers() -> None:
    """Section 5 and Table 3: γ = .9, random order, λ = 2."""
    config = ObjectiveConfig()
    assert (config.ar_decay, config.patch_order, config.ar_weight) == (0.9, "random", 2.0)
    assert (config.num_ar_steps, config.ar_weight_along, config.ar_weight_shape) == (None, "step", "linear")
    assert (config.time_sampling, config.time_copies, config.sequence_multiple) == ("shared", 1, None)
