"""Mixup, CutMix and soft targets: by counting pixels, by laws in closed form, and for any layout of a batch."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from causalfusion_platform.config.augment import AugmentConfig
from causalfusion_platform.data.augment.box import Box
from causalfusion_platform.data.augment.mixing import MixDraw, cut, draw_mixing, mix, soft_targets
from causalfusion_platform.data.augment.streams import numpy_streams

STEPS = 3000
CHANCE = 1e-3
"""The draws are fixed, so that a test either passes always or never."""
MAE = AugmentConfig()


def drawn_of(config: AugmentConfig, height: int = 32, width: int = 32, steps: int = STEPS) -> list[MixDraw]:
    drawn = [draw_mixing(config, 7, step, height, width) for step in range(steps)]
    return [item for item in drawn if item is not None]


def batch(rows: int, classes: int = 5, side: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    labels = torch.randint(classes, (rows,), generator=generator)
    return torch.randn(rows, 2, side, side + 1, generator=generator), soft_targets(labels, classes, 0.1)


def test_half_of_the_steps_take_cutmix() -> None:
    mixups = sum(item.box is None for item in drawn_of(MAE))
    assert stats.binomtest(mixups, STEPS).pvalue > CHANCE


@pytest.mark.parametrize("alpha", [0.2, 0.8, 4.0])
def test_weights_of_mixup_are_of_beta(alpha: float) -> None:
    """Enough steps to tell 0.8 from 1."""
    weights = [item.weight for item in drawn_of(AugmentConfig(mixup=alpha, cutmix=0), steps=12_000)]
    assert stats.kstest(weights, stats.beta(alpha, alpha).cdf).pvalue > CHANCE
    assert stats.kstest(weights, stats.beta(1.25 * alpha, 1.25 * alpha).cdf).pvalue < CHANCE


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_areas_of_cutmix_are_of_beta_and_cut_at_the_borders(alpha: float) -> None:
    """On an image so large that whole pixels do not matter, against a simulation in the unit square."""
    drawn = drawn_of(AugmentConfig(mixup=0, cutmix=alpha), height=10**6, width=10**6 + 7)
    random = np.random.default_rng(0)
    half = np.sqrt(1 - random.beta(alpha, alpha, 200_000)) / 2
    centres = random.random((2, 200_000))
    sides = np.minimum(centres + half, 1) - np.maximum(centres - half, 0)
    observed = np.array([item.weight for item in drawn])
    assert stats.ks_2samp(observed.round(3), (1 - sides[0] * sides[1]).round(3)).pvalue > CHANCE


@pytest.mark.parametrize(("switch", "share"), [(0.0, 0.0), (0.2, 0.2), (1.0, 1.0)])
def test_the_switch_is_the_probability_of_cutmix(switch: float, share: float) -> None:
    cuts = sum(item.box is not None for item in drawn_of(AugmentConfig(switch=switch), steps=1000))
    assert stats.binomtest(cuts, 1000, share).pvalue > CHANCE


def test_one_of_the_two_is_taken_always_where_the_other_is_off_and_none_where_both_are() -> None:
    assert all(item.box is None for item in drawn_of(AugmentConfig(cutmix=0), steps=100))
    assert all(item.box is not None for item in drawn_of(AugmentConfig(mixup=0), steps=100))
    assert drawn_of(AugmentConfig(mixup=0, cutmix=0), steps=100) == []


@pytest.mark.parametrize(("height", "width", "weight"), [(6, 5, 0.5), (8, 8, 0.3), (4, 9, 0.9), (5, 5, 0.0)])
def test_boxes_of_cutmix_are_of_equally_likely_centres(height: int, width: int, weight: float) -> None:
    """Every centre's box is found by asking each pixel whether it is less than half a side away."""
    up, left = (int(side * (1 - weight) ** 0.5) // 2 for side in (height, width))
    expected: Counter[frozenset[tuple[int, int]]] = Counter()
    for y, x in itertools.product(range(height), range(width)):
        pixels = itertools.product(range(height), range(width))
        expected[frozenset((r, c) for r, c in pixels if -up <= r - y < up and -left <= c - x < left)] += 1
    observed: Counter[frozenset[tuple[int, int]]] = Counter()
    for generator in numpy_streams(1, "cut", range(4000)):
        drawn = cut(height, width, weight, generator)
        assert drawn.box is not None
        box = drawn.box
        rows, columns = range(box.top, box.bottom), range(box.left, box.right)
        inside = frozenset(itertools.product(rows, columns))
        observed[inside] += 1
        assert drawn.weight == 1 - len(inside) / (height * width)
    assert observed.keys() == expected.keys()
    places = [*expected]
    frequencies = np.array([expected[place] for place in places]) / (height * width) * 4000
    if len(places) > 1:
        assert stats.chisquare([observed[place] for place in places], frequencies).pvalue > CHANCE


@given(
    st.integers(0, 500),
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from([(0.8, 1.0), (0.0, 1.0), (0.8, 0.0), (0.0, 5.0)]),
)
def test_the_weight_is_the_share_of_own_pixels(
    step: int, height: int, width: int, alphas: tuple[float, float]
) -> None:
    """Rows of zeros are mixed with rows of ones, and each counts its share of both."""
    drawn = draw_mixing(AugmentConfig(mixup=alphas[0], cutmix=alphas[1]), 0, step, height, width)
    assert drawn is not None and 0 <= drawn.weight <= 1
    images = torch.zeros(4, 3, height, width, dtype=torch.float64)
    images[1::2] = 1
    mixed, targets = mix(images, soft_targets(torch.tensor([0, 1, 0, 1]), 2, 0.0), drawn)
    shares = mixed.mean((1, 2, 3))
    assert shares.tolist() == pytest.approx([1 - drawn.weight, drawn.weight] * 2)
    assert targets[:, 1].tolist() == pytest.approx(shares.tolist(), abs=1e-6)
    if drawn.box is not None:
        own = int((mixed[0, 0] == 0).sum())
        assert drawn.weight == 1 - (height * width - own) / (height * width)


@given(
    st.lists(st.integers(0, 6), min_size=2, max_size=12).filter(lambda labels: len(labels) % 2 == 0),
    st.floats(0, 0.99),
    st.floats(0, 1),
)
def test_targets_sum_to_1_and_keep_the_mass_of_each_pair(
    labels: list[int], smoothing: float, weight: float
) -> None:
    targets = soft_targets(torch.tensor(labels), 7, smoothing)
    images = torch.randn(len(labels), 1, 4, 4, generator=torch.Generator().manual_seed(0))
    for drawn in (MixDraw(weight, None), MixDraw(0.75, Box(1, 3, 0, 2)), None):
        mixed, soft = mix(images, targets, drawn)
        assert soft.dtype == torch.float32
        assert soft.min() >= 0
        assert torch.allclose(soft.sum(1), torch.ones(len(labels)), atol=1e-6)
        assert torch.allclose(mixed[::2] + mixed[1::2], images[::2] + images[1::2], atol=1e-5)
        assert torch.allclose(soft[::2] + soft[1::2], targets[::2] + targets[1::2], atol=1e-6)


def test_smoothing_against_the_formula() -> None:
    targets = soft_targets(torch.tensor([2, 0]), 4, 0.1)
    expected = torch.full((2, 4), 0.025)
    expected[0, 2] = expected[1, 0] = 0.925
    assert torch.allclose(targets, expected, atol=1e-7)


@pytest.mark.parametrize("drawn", [MixDraw(0.3, None), MixDraw(0.8, Box(0, 2, 1, 4))])
def test_each_row_against_a_loop_over_pixels(drawn: MixDraw) -> None:
    images, targets = batch(6)
    kept, kept_targets = images.clone(), targets.clone()
    mixed, soft = mix(images, targets, drawn)
    for row in range(6):
        partner = row + 1 if row % 2 == 0 else row - 1
        for y, x in itertools.product(range(6), range(7)):
            if drawn.box is None:
                expected = 0.3 * kept[row, :, y, x] + 0.7 * kept[partner, :, y, x]
            else:
                expected = kept[partner if y < 2 and 1 <= x < 4 else row, :, y, x]
            assert torch.allclose(mixed[row, :, y, x], expected, atol=1e-6)
        own, other = kept_targets[row], kept_targets[partner]
        assert torch.allclose(soft[row], drawn.weight * own + (1 - drawn.weight) * other, atol=1e-6)
    assert torch.equal(images, kept) and torch.equal(targets, kept_targets)


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("micro", [2, 4])
def test_workers_and_micro_batches_do_not_matter(workers: int, micro: int) -> None:
    rows = 24
    images, targets = batch(rows)
    for step in range(20):
        whole = mix(images, targets, draw_mixing(MAE, 1, step, 6, 7))
        parts = []
        for worker in range(workers):
            first = worker * rows // workers
            for start in range(first, first + rows // workers, micro):
                part = slice(start, start + micro)
                parts.append(mix(images[part], targets[part], draw_mixing(MAE, 1, step, 6, 7)))
        for one, several in zip(whole, zip(*parts, strict=True), strict=True):
            assert torch.equal(one, torch.cat(several))


def test_draws_are_of_the_seed_and_the_step_and_types_stay() -> None:
    drawn = drawn_of(MAE, steps=50)
    assert drawn == drawn_of(MAE, steps=50)
    assert len({item.weight for item in drawn}) == 50
    other = [draw_mixing(MAE, 8, step, 32, 32) for step in range(50)]
    assert not any(one == two for one, two in zip(drawn, other, strict=True))
    images, targets = batch(4)
    for kind in (torch.bfloat16, torch.float16):
        for item in (MixDraw(0.3, None), MixDraw(0.8, Box(0, 2, 1, 4))):
            assert mix(images.to(kind), targets, item)[0].dtype == kind


def test_an_odd_batch_is_refused_and_nothing_is_mixed_without_draws() -> None:
    images, targets = batch(3)
    with pytest.raises(ValueError, match="even number of rows, got 3"):
        mix(images, targets, MixDraw(0.5, None))
    assert mix(images, targets, None) == (images, targets)
