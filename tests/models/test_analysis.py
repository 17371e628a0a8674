"""The law of |κ| (Figure 4b), against enumeration, closed forms and what training draws."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from causalfusion.analysis import sampled_step_sizes, step_size_law

DECAYS = [Fraction(0), Fraction(1, 2), Fraction(9, 10), Fraction(1)]


def splits_and_probabilities(length: int, decay: Fraction) -> Iterator[tuple[list[int], Fraction]]:
    """Enumerate every way to cut `length` tokens, with its probability: γ^(S−1) shared by the cuts of one S."""
    total = sum((decay**i for i in range(length)), Fraction(0))
    for cuts in itertools.product((False, True), repeat=length - 1):
        edges = [0, *(place + 1 for place, cut in enumerate(cuts) if cut), length]
        ways = math.comb(length - 1, sum(cuts))
        yield [end - start for start, end in itertools.pairwise(edges)], decay ** sum(cuts) / total / ways


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("length", range(1, 11))
def test_law_against_enumeration(length: int, decay: Fraction) -> None:
    pooled = [Fraction(0)] * length
    for sizes, probability in splits_and_probabilities(length, decay):
        for size in sizes:
            pooled[size - 1] += probability
    expected = [float(mass / sum(pooled, Fraction(0))) for mass in pooled]
    found = step_size_law(length, float(decay))
    assert found.shape == (length,)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("decay", [Fraction(1, 2), Fraction(9, 10), Fraction(1)])
@pytest.mark.parametrize("length", [256, 1024])
def test_law_against_binomials_at_full_length(length: int, decay: Fraction) -> None:
    """P(|κ| = k | S) = C(L−k−1, S−2) / C(L−1, S−1), in exact integers, to 11 digits even in the far tail."""
    law = step_size_law(length, float(decay)).tolist()
    weights = [s * float(decay) ** (s - 1) for s in range(1, length + 1)]
    for k in (1, 2, 16, length // 2, length - 1, length):
        given = [float(k == length)]
        for s in range(2, length + 1):
            ways = math.comb(length - k - 1, s - 2) if k < length else 0
            given.append(ways / math.comb(length - 1, s - 1))
        expected = sum(w * p for w, p in zip(weights, given, strict=True)) / sum(weights)
        assert law[k - 1] == pytest.approx(expected, rel=1e-11, abs=0)
    assert math.fsum(law) == pytest.approx(1, rel=1e-13)


@pytest.mark.parametrize("length", [20, 256, 1024])
def test_no_decay_is_the_law_of_yule_and_simon(length: int) -> None:
    """At γ = 1, P(|κ| > k) = 2 / ((k+1)(k+2)) for k < L, whatever L."""
    exceed = [Fraction(2, (k + 1) * (k + 2)) for k in range(length)] + [Fraction(0)]
    expected = [float(more - less) for more, less in itertools.pairwise(exceed)]
    np.testing.assert_allclose(step_size_law(length, 1.0).numpy(), expected, rtol=1e-11, atol=0)


def test_share_of_small_steps() -> None:
    """At L = 256, 152/153 of the AR steps have |κ| ≤ 16 at γ = 1 and 60.11% at γ = .9 (Section 5)."""
    assert float(step_size_law(256, 1.0)[:16].sum()) == pytest.approx(152 / 153, rel=1e-13)
    assert f"{float(step_size_law(256, 0.9)[:16].sum()):.2%}" == "60.11%"


@pytest.mark.parametrize("decay", [0.0, 0.9, 1.0])
def test_mean_size_is_tokens_over_mean_number_of_steps(decay: float) -> None:
    """Sizes of a draw add up to L, so that E|κ| = L / E[S]: 25.6 at γ = .9."""
    powers = [decay**i for i in range(256)]
    mean_steps = sum((i + 1) * power for i, power in enumerate(powers)) / sum(powers)
    mean_size = float(step_size_law(256, decay).numpy() @ np.arange(1, 257))
    assert mean_size == pytest.approx(256 / mean_steps, rel=1e-12)
    if decay == 0.9:
        assert round(mean_size, 5) == 25.6


@pytest.mark.parametrize("decay", [-0.1, 1.1, math.nan])
def test_decay_must_be_a_fraction(decay: float) -> None:
    with pytest.raises(ValueError, match="γ must lie in"):
        step_size_law(4, decay)
    with pytest.raises(ValueError, match="γ must lie in"):
        sampled_step_sizes(4, decay, draws=1, seed=0)


@pytest.mark.parametrize("decay", [Fraction(7, 10), Fraction(1)])
def test_drawn_splits_follow_the_law(decay: Fraction) -> None:
    """χ² of pooled counts against the law, with the covariance of one draw's sizes, which hang together.

    The sizes add up to L, so that counts of 8 sizes leave 7 degrees of freedom.
    """
    length, draws = 8, 4000
    mean, square = np.zeros(length), np.zeros((length, length))
    mean_steps = 0.0
    for sizes, probability in splits_and_probabilities(length, decay):
        count = np.bincount(sizes, minlength=length + 1)[1:]
        mean += float(probability) * count
        square += float(probability) * np.outer(count, count)
        mean_steps += float(probability) * len(sizes)
    inverse = np.linalg.pinv(square - np.outer(mean, mean), rcond=1e-10, hermitian=True)

    counts = sampled_step_sizes(length, float(decay), draws, seed=0).numpy()
    assert counts @ np.arange(1, length + 1) == draws * length
    excess = counts - draws * mean_steps * step_size_law(length, float(decay)).numpy()
    assert stats.chi2.sf(excess @ inverse @ excess / draws, df=length - 1) > 1e-3


def test_draws_follow_the_seed_and_the_training_step() -> None:
    """A run's steps are numbered from 0: more draws add counts, another seed gives others."""
    few, many = sampled_step_sizes(16, 0.9, 20, seed=0), sampled_step_sizes(16, 0.9, 60, seed=0)
    assert bool((many >= few).all())
    assert not few.equal(sampled_step_sizes(16, 0.9, 20, seed=1))
