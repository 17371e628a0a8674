"""Random draws as functions of their key."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from causalfusion.draws import randn_each, sample_seeds, sample_streams, stream, stream_seed

parts = st.one_of(st.integers(-5, 300), st.text(max_size=3))


def numbers(*key: str | int) -> list[float]:
    return torch.randn(20, generator=stream(0, *key)).tolist()


def test_seeds_do_not_change_between_processes_and_versions() -> None:
    """A run's draws are its seed's for good: these numbers must never change."""
    assert stream_seed(0, "ar split", 0) == 2_496_375_721
    assert stream_seed(17, "training sample", 123_456) == 1_749_488_273


@given(st.lists(parts, max_size=3), st.lists(parts, max_size=3), st.integers(0, 3), st.integers(0, 3))
def test_distinct_keys_have_distinct_seeds(
    one: list[str | int], other: list[str | int], seed: int, other_seed: int
) -> None:
    assert (stream_seed(seed, *one) == stream_seed(other_seed, *other)) == ((seed, one) == (other_seed, other))


def test_keys_that_look_alike_have_distinct_seeds() -> None:
    """Parts do not run together, 1 is not "1", and a part may hold any character."""
    keys: list[tuple[str | int, ...]] = [
        ("a", "b"),
        ("ab",),
        ("", "ab"),
        ("a", "b", ""),
        ("b", "a"),
        ("a\x1fb",),
        ("a\x1fstr:b",),
        (1, 2),
        (12,),
        ("1", 2),
        (1, "2"),
        ("1\x1fint:2",),
    ]
    for one, other in itertools.combinations(keys, 2):
        assert stream_seed(0, *one) != stream_seed(0, *other), (one, other)


def test_a_stream_repeats_and_others_differ() -> None:
    assert numbers("x", 1) == numbers("x", 1)
    assert numbers("x", 1) != numbers("x", 2)
    assert numbers("x", 1) != numbers("y", 1)
    one, other = (torch.randn(20, generator=stream(seed, "x", 1)) for seed in (0, 1))
    assert not torch.equal(one, other)


def test_streams_of_neighbouring_samples_are_independent() -> None:
    """First normals of 4000 streams: standard normal, and uncorrelated with those of the next sample."""
    draws = randn_each(sample_streams(0, "x", range(4000)), 2).double().numpy()
    assert stats.kstest(draws[:, 0], "norm").pvalue > 1e-3
    assert stats.pearsonr(draws[:-1, 0], draws[1:, 0]).pvalue > 1e-3
    assert stats.pearsonr(draws[:, 0], draws[:, 1]).pvalue > 1e-3


def test_a_samples_stream_does_not_depend_on_its_neighbours() -> None:
    together = randn_each(sample_streams(3, "x", [4, 9, 2]), 2, 5)
    assert together.shape == (3, 2, 5)
    assert together.dtype == torch.float32
    for row, index in enumerate([4, 9, 2]):
        assert torch.equal(randn_each(sample_streams(3, "x", [index]), 2, 5)[0], together[row])
        assert torch.equal(torch.randn(2, 5, generator=stream(3, "x", index)), together[row])


@given(st.integers(-(2**63), 2**63), st.text(max_size=5), st.lists(st.integers(-5, 2**70), max_size=4))
def test_seeds_of_many_samples_are_those_of_each(seed: int, what: str, indices: list[int]) -> None:
    assert sample_seeds(seed, what, indices) == [stream_seed(seed, what, index) for index in indices]


def test_seeds_of_samples_do_not_change() -> None:
    """Whatever integers the indices come as: numpy's, a tensor's, a range's."""
    known = [1_749_488_273]
    assert sample_seeds(17, "training sample", range(123_456, 123_457)) == known
    assert sample_seeds(17, "training sample", list(np.array([123_456]))) == known
    assert sample_seeds(17, "training sample", list(torch.tensor([123_456]))) == known
    assert sample_seeds(17, "training sample", []) == []


def test_coins_from_seeds_are_fair() -> None:
    """A seed's lowest bit serves as a coin: even over many samples, whatever its neighbours and other streams."""
    coins = np.array([sample_seeds(seed, "flip", range(20_000)) for seed in (0, 1)]) % 2
    others = np.array(sample_seeds(0, "posterior", range(20_000))) % 2
    pairs = [coins[0], coins[1], coins[0] ^ coins[1], coins[0] ^ others, coins[0, 1:] ^ coins[0, :-1]]
    for each in pairs:
        assert stats.binomtest(int(each.sum()), len(each)).pvalue > 1e-3
