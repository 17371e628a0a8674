"""AR steps: how many, and how many tokens each (Sections 4 and 5, Algorithm 1)."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from causalfusion.factorization.steps import (
    ar_step_probabilities,
    check_sizes,
    equal_step_sizes,
    random_step_sizes,
    sample_num_ar_steps,
    step_of_token,
)

splits = st.integers(1, 40).flatmap(lambda length: st.tuples(st.just(length), st.integers(1, length)))


@given(length=st.integers(1, 300), decay=st.floats(0.01, 0.999))
def test_decayed_law(length: int, decay: float) -> None:
    """P(S = i) = γ^(i−1) (1 − γ) / (1 − γ^L) (Section 5)."""
    found = ar_step_probabilities(length, decay)
    total = (1 - decay**length) / (1 - decay)
    expected = [decay ** (i - 1) / total for i in range(1, length + 1)]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10)
    assert found.dtype == torch.float64


def test_no_decay_is_uniform_and_full_decay_is_the_in_context_dit() -> None:
    """Section 5: γ = 1 is the uniform law, γ = 0 is S = 1."""
    assert ar_step_probabilities(256, 1.0).tolist() == [1 / 256] * 256
    assert ar_step_probabilities(256, 0.0).tolist() == [1.0] + [0.0] * 255
    generator = torch.Generator().manual_seed(0)
    assert {sample_num_ar_steps(256, 0.0, generator) for _ in range(50)} == {1}


@pytest.mark.parametrize("decay", [-0.1, 1.1, math.nan])
def test_decay_must_be_a_fraction(decay: float) -> None:
    with pytest.raises(ValueError, match="γ must lie in"):
        ar_step_probabilities(4, decay)


def test_mean_number_of_steps() -> None:
    """At L = 256 and γ = .9, E[S] = 1/(1−γ) − L γ^L / (1−γ^L) ≈ 10; at γ = 1 it is (L+1)/2."""
    length, decay = 256, 0.9
    expected = 1 / (1 - decay) - length * decay**length / (1 - decay**length)
    index = torch.arange(1, length + 1)
    assert float((index * ar_step_probabilities(length, decay)).sum()) == pytest.approx(expected, rel=1e-12)
    assert round(expected, 6) == 10
    assert float((index * ar_step_probabilities(length, 1.0)).sum()) == pytest.approx(128.5, rel=1e-12)


@pytest.mark.parametrize("decay", [0.7, 1.0])
def test_sampled_numbers_of_steps_follow_the_law(decay: float) -> None:
    length, count = 8, 3000
    generator = torch.Generator().manual_seed(0)
    drawn = Counter(sample_num_ar_steps(length, decay, generator) for _ in range(count))
    assert set(drawn) <= set(range(1, length + 1))
    weights = [decay**i for i in range(length)]
    expected = [count * weight / sum(weights) for weight in weights]
    assert stats.chisquare([drawn[i] for i in range(1, length + 1)], expected).pvalue > 1e-3


@given(splits, st.integers(0, 2**31))
def test_random_sizes_are_positive_and_add_up(split: tuple[int, int], seed: int) -> None:
    length, steps = split
    sizes = random_step_sizes(length, steps, torch.Generator().manual_seed(seed))
    assert len(sizes) == steps
    assert min(sizes) >= 1
    assert sum(sizes) == length


@pytest.mark.parametrize(("length", "steps"), [(6, 3), (5, 2), (7, 6)])
def test_random_cuts_are_uniform_over_all_compositions(length: int, steps: int) -> None:
    """Algorithm 1 samples S − 1 distinct cuts: every ordered way to write L as S sizes is equally likely."""
    compositions = [
        sizes for sizes in itertools.product(range(1, length + 1), repeat=steps) if sum(sizes) == length
    ]
    assert len(compositions) == math.comb(length - 1, steps - 1)
    generator = torch.Generator().manual_seed(0)
    drawn = Counter(tuple(random_step_sizes(length, steps, generator)) for _ in range(200 * len(compositions)))
    assert set(drawn) <= set(compositions)
    assert stats.chisquare([drawn[sizes] for sizes in compositions]).pvalue > 1e-3


def share_of_small_steps(length: int, decay: Fraction, size: int) -> Fraction:
    """Return P(|κ| ≤ size), the share of all AR steps of all images, exactly.

    Given S, a step is larger than `size` in C(L−1−size, S−1) of C(L−1, S−1) compositions; an image with S
    steps counts S times.
    """
    steps = range(1, length + 1)
    larger = [Fraction(math.comb(length - 1 - size, s - 1), math.comb(length - 1, s - 1)) for s in steps]
    weight = [s * decay ** (s - 1) for s in steps]
    share = sum((w * p for w, p in zip(weight, larger, strict=True)), Fraction(0))
    return 1 - share / sum(weight, Fraction(0))


def test_share_of_small_steps_of_the_uniform_law() -> None:
    """At γ = 1 sizes follow Yule and Simon's law, P(|κ| > k) = 2 / ((k+1)(k+2)) for every L.

    At L = 256, 99.35% of AR steps have |κ| ≤ 16; Section 4 says "over 95%".
    """
    for length, size in itertools.product((20, 256), (1, 5, 16)):
        assert share_of_small_steps(length, Fraction(1), size) == 1 - Fraction(2, (size + 1) * (size + 2))
    assert share_of_small_steps(256, Fraction(1), 16) == Fraction(152, 153)


def test_share_of_small_steps_of_the_decayed_law() -> None:
    """At L = 256 and γ = .9, 60.1% of AR steps have |κ| ≤ 16 (Figure 4b)."""
    assert f"{float(share_of_small_steps(256, Fraction(9, 10), 16)):.1%}" == "60.1%"


@pytest.mark.parametrize(("decay", "images"), [(0.9, 2500), (1.0, 300)])
def test_sampled_share_of_small_steps(decay: float, images: int) -> None:
    """What is sampled has the exact share of steps with |κ| ≤ 16 at L = 256, within 4 standard errors."""
    generator = torch.Generator().manual_seed(0)
    small, total = np.zeros(images), np.zeros(images)
    for i in range(images):
        sizes = random_step_sizes(256, sample_num_ar_steps(256, decay, generator), generator)
        small[i], total[i] = sum(size <= 16 for size in sizes), len(sizes)
    expected = float(share_of_small_steps(256, Fraction(str(decay)), 16))
    share = small.sum() / total.sum()
    standard_error = float((small - share * total).std() / total.mean() / math.sqrt(images))
    assert standard_error < 0.012
    assert abs(share - expected) < 4 * standard_error


@given(splits)
def test_equal_sizes_against_dealing_tokens_in_turn(split: tuple[int, int]) -> None:
    """Tokens dealt one by one to S steps give the sizes."""
    length, steps = split
    expected = [0] * steps
    for token in range(length):
        expected[token % steps] += 1
    assert equal_step_sizes(length, steps) == expected


def test_equal_sizes_of_table_2() -> None:
    """Section 4: |κ| = L / S."""
    for steps in (1, 2, 4, 8, 256):
        assert equal_step_sizes(256, steps) == [256 // steps] * steps


@pytest.mark.parametrize("steps", [0, 5, -1])
def test_numbers_of_steps_outside_the_tokens_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=r"must lie in \[1, 4\]"):
        equal_step_sizes(4, steps)
    with pytest.raises(ValueError, match=r"must lie in \[1, 4\]"):
        random_step_sizes(4, steps, torch.Generator())


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_step_of_token_against_a_loop(sizes: list[int]) -> None:
    expected = []
    for step, size in enumerate(sizes):
        for _ in range(size):
            expected.append(step)
    assert step_of_token(sizes).tolist() == expected


def test_sizes_that_make_up_the_image_pass() -> None:
    for sizes in ([16], [5, 1, 10], [1] * 16):
        check_sizes(sizes, 16)


@pytest.mark.parametrize("sizes", [[15], [17], [8, 0, 8], [20, -4], [1] * 15])
def test_other_sizes_are_refused(sizes: list[int]) -> None:
    with pytest.raises(ValueError, match="must be positive and add up to 16, got"):
        check_sizes(sizes, 16)
