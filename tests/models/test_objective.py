"""The training objective: draws, weights and loss (Eq. 4 and 5, Section 5)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
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
from causalfusion.mask import generalized_causal_mask
from causalfusion.objective import ar_weights, draw_split

ConfigMaker = Callable[..., CausalFusionConfig]
ModelMaker = Callable[..., CausalFusion]


def weight_in_words(sizes: list[int], step: int, ar_weight: float, along: str) -> float:
    """Return w(s), s counted from 0, from the definition of either reading."""
    if len(sizes) == 1:
        return ar_weight
    if along == "step":  # linear in s through (s = 1, λ) and (s = S, 1)
        return ar_weight + (1 - ar_weight) * step / (len(sizes) - 1)
    return ar_weight - (ar_weight - 1) * sum(sizes[:step]) / sum(sizes)


@pytest.mark.parametrize("along", ["step", "token"])
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=8),
    ar_weight=st.floats(1, 5),
)
def test_ar_weights_against_the_law(along: Literal["step", "token"], sizes: list[int], ar_weight: float) -> None:
    """Section 5: λ at s = 1, decaying linearly along the steps or along the tokens."""
    expected = []
    for step, size in enumerate(sizes):
        expected += [weight_in_words(sizes, step, ar_weight, along)] * size
    np.testing.assert_allclose(ar_weights(sizes, ar_weight, along).numpy(), expected, rtol=1e-6)


def test_ar_weights_of_an_example() -> None:
    """Steps of 2, 2 and 3 tokens, λ = 2: 2, 1.5, 1 along the steps; 2, 2 − 2/7, 2 − 4/7 along the tokens."""
    assert ar_weights([2, 2, 3], 2.0, "step").tolist() == [2, 2, 1.5, 1.5, 1, 1, 1]
    found = ar_weights([2, 2, 3], 2.0, "token")
    np.testing.assert_allclose(found.numpy(), [2, 2] + [12 / 7] * 2 + [10 / 7] * 3, rtol=1e-6)


def test_one_step_has_the_first_steps_weight() -> None:
    """With S = 1 both readings give λ; with λ = 1 nothing is weighted."""
    for along in ("step", "token"):
        assert ar_weights([4], 2.5, along).tolist() == [2.5] * 4
        assert ar_weights([1, 3, 2], 1.0, along).tolist() == [1.0] * 6


class Recorder:
    """A predictor that keeps what it is called with and answers a fixed tensor."""

    def __init__(self, answer: Tensor) -> None:
        self.answer = answer
        self.seen: dict[str, Tensor] = {}

    def __call__(
        self, noised: Tensor, clean: Tensor, positions: Tensor, t: Tensor, labels: Tensor, mask: Tensor
    ) -> Tensor:
        names = ("noised", "clean", "positions", "t", "labels", "mask")
        self.seen = dict(zip(names, (noised, clean, positions, t, labels, mask), strict=True))
        return self.answer


def example(make_model: ModelMaker) -> tuple[CausalFusion, Draws, Tensor, Tensor]:
    """Return a model with 16 tokens of 8 numbers, and draws, latents and labels for four samples."""
    model = make_model(in_channels=2)
    generator = torch.Generator().manual_seed(3)
    drawn = Draws(
        sizes=[3, 1, 7, 5],
        orders=torch.stack([torch.randperm(16, generator=generator) for _ in range(4)]),
        times=torch.tensor([500, 20, 999, 0]),
        noise=torch.randn(4, 2, 8, 8, generator=generator),
        dropped=torch.tensor([False, True, False, True]),
    )
    latents = torch.randn(4, 2, 8, 8, generator=generator, dtype=torch.float64)
    return model, drawn, latents, torch.tensor([2, 0, 1, 1])


def patch(image: Tensor, position: int) -> list[float]:
    """Return the numbers of one 2×2 patch of a (channels, 8, 8) image, channels fastest."""
    y, x = divmod(position, 4)
    return [float(image[c, 2 * y + p, 2 * x + q]) for p in range(2) for q in range(2) for c in range(len(image))]


@pytest.mark.parametrize("along", ["step", "token"])
def test_loss_against_loops(make_model: ModelMaker, along: Literal["step", "token"]) -> None:
    """The loss is the mean of w(s) (ε − ε̂)² over samples, steps, tokens and numbers."""
    model, drawn, latents, labels = example(make_model)
    answer = torch.randn(4, 16, 8, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    config = ObjectiveConfig(ar_weight=2.5, ar_weight_along=along)
    loss = Objective(model, config, DiffusionConfig())(Recorder(answer), latents, labels, drawn)

    weighted, plain, count = 0.0, 0.0, 0
    for sample in range(4):
        token = 0
        for step, size in enumerate(drawn.sizes):
            for _ in range(size):
                target = patch(drawn.noise[sample], int(drawn.orders[sample, token]))
                for number, value in enumerate(target):
                    squared = (value - float(answer[sample, token, number])) ** 2
                    weighted += weight_in_words(drawn.sizes, step, 2.5, along) * squared
                    plain += squared
                    count += 1
                token += 1
    assert count == 4 * 16 * 8
    assert float(loss.weighted) == pytest.approx(weighted / count, rel=1e-6)
    assert float(loss.mse) == pytest.approx(plain / count, rel=1e-6)


def test_what_the_model_is_given(make_model: ModelMaker) -> None:
    """Eq. 5: x_t and x_0 in visiting order, x_0 without the last step, t shared, dropped classes null."""
    model, drawn, latents, labels = example(make_model)
    predict = Recorder(torch.zeros(4, 16, 8))
    Objective(model, ObjectiveConfig(), DiffusionConfig())(predict, latents, labels, drawn)
    seen = predict.seen
    cumprod = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    assert seen["noised"].shape == (4, 16, 8)
    assert seen["clean"].shape == (4, 11, 8)
    for sample in range(4):
        alpha = cumprod[int(drawn.times[sample])]
        for token, position in enumerate(drawn.orders[sample].tolist()):
            x0 = np.array(patch(latents[sample], position))
            noise = np.array(patch(drawn.noise[sample], position))
            expected = np.sqrt(alpha) * x0 + np.sqrt(1 - alpha) * noise
            np.testing.assert_allclose(seen["noised"][sample, token].numpy(), expected, rtol=0, atol=2e-6)
            if token < 11:
                np.testing.assert_array_equal(seen["clean"][sample, token].numpy(), x0)
    assert torch.equal(seen["positions"], drawn.orders)
    assert torch.equal(seen["t"], drawn.times)
    assert seen["labels"].tolist() == [2, 3, 1, 3]
    assert torch.equal(seen["mask"], generalized_causal_mask([3, 1, 7, 5], 2))


def test_one_step_gives_no_clean_tokens(make_model: ModelMaker) -> None:
    model, drawn, latents, labels = example(make_model)
    one = Draws([16], drawn.orders, drawn.times, drawn.noise, drawn.dropped)
    predict = Recorder(torch.zeros(4, 16, 8))
    loss = Objective(model, ObjectiveConfig(ar_weight=3.0), DiffusionConfig())(predict, latents, labels, one)
    assert predict.seen["clean"].shape == (4, 0, 8)
    assert float(loss.weighted) == pytest.approx(3 * float(loss.mse), rel=1e-6)


def test_a_perfect_predictor_has_no_loss(make_model: ModelMaker) -> None:
    """ε = (x_t − √ᾱ x_0) / √(1−ᾱ), solved from what the model is given and the data."""
    model, drawn, latents, labels = example(make_model)
    cumprod = torch.from_numpy(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))

    def predict(
        noised: Tensor, clean: Tensor, positions: Tensor, t: Tensor, labels: Tensor, mask: Tensor
    ) -> Tensor:
        del clean, labels, mask
        patches = model.patchify(latents)
        x0 = torch.stack([own[order] for own, order in zip(patches, positions, strict=True)])
        alpha = cumprod[t][:, None, None]
        return (noised - alpha.sqrt() * x0) / (1 - alpha).sqrt()

    loss = Objective(model, ObjectiveConfig(), DiffusionConfig())(predict, latents, labels, drawn)
    assert float(loss.mse) < 1e-9
    assert float(loss.weighted) < 2e-9


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
    assert drawn.times.shape == drawn.dropped.shape == (5,)
    assert drawn.noise.shape == (5, 3, 8, 8)
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
    assert stats.chisquare(torch.bincount(drawn.times // 100, minlength=10).numpy()).pvalue > 1e-3
    assert stats.kstest(drawn.noise.flatten().numpy(), "norm").pvalue > 1e-3
    assert stats.chisquare(torch.bincount(drawn.orders[:, 0], minlength=4).numpy()).pvalue > 1e-3


@pytest.mark.parametrize(("dropout", "expected"), [(0.0, set()), (0.999, {True})])
def test_extreme_class_dropout(make_config: ConfigMaker, dropout: float, expected: set[bool]) -> None:
    objective = ObjectiveConfig(class_dropout=dropout)
    drawn = draw(make_config(), objective, DiffusionConfig(), seed=0, step=0, samples=range(50))
    assert set(drawn.dropped.tolist()) - {False} == expected


def test_splits_over_training_steps_follow_the_decayed_law() -> None:
    """Section 5: P(S = i) ∝ γ^(i−1), over the optimizer steps of a run."""
    config, count = ObjectiveConfig(ar_decay=0.7), 2000
    splits = [draw_split(config, 8, 0, step) for step in range(count)]
    assert all(sum(sizes) == 8 and min(sizes) >= 1 for sizes in splits)
    drawn = Counter(len(sizes) for sizes in splits)
    weights = [0.7**i for i in range(8)]
    expected = [count * weight / sum(weights) for weight in weights]
    assert stats.chisquare([drawn[i] for i in range(1, 9)], expected).pvalue > 1e-3


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
    assert (config.num_ar_steps, config.ar_weight_along) == (None, "step")
