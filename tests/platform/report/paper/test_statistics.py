"""Means over seeds, differences of rows, and verdicts."""

from __future__ import annotations

import itertools
import math
import random
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from causalfusion_platform.report.paper.statistics import (
    Gain,
    Values,
    compare,
    decide,
    estimate,
    finite,
    holm,
    kendall_tau,
    spread,
)

# Two-sided 5% points of Student's t, from a printed table.
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 9: 2.262}


@pytest.mark.parametrize("n", [2, 3, 4, 5, 10])
def test_the_interval_is_students(n: int) -> None:
    values = [random.Random(n).gauss(10, 3) for _ in range(n)]
    found = estimate(values)
    assert found.n == n
    assert found.mean == pytest.approx(statistics.mean(values))
    assert found.half_width == pytest.approx(T_95[n - 1] * statistics.stdev(values) / math.sqrt(n), rel=2e-4)


def test_one_seed_has_no_interval_and_none_has_nothing() -> None:
    assert (estimate([3.0]).n, estimate([3.0]).mean, estimate([3.0]).half_width) == (1, 3.0, None)
    assert (estimate([]).n, estimate([None]).mean, estimate([None]).half_width) == (0, None, None)


def test_what_is_no_number_is_left_out() -> None:
    assert finite({0: 1.0, 1: None, 2: float("nan"), 3: float("inf"), 4: 0.0}) == {0: 1.0, 4: 0.0}
    assert estimate([1.0, float("nan"), 3.0, None, float("-inf")]).n == 2
    assert estimate([1.0, float("nan"), 3.0]).mean == 2.0


# Differences


def test_the_same_seeds_are_compared_in_pairs() -> None:
    """Student's sleep data (1908), the textbook example of a paired test: t = −4.0621, df = 9, p = 0.002833."""
    first = dict(enumerate([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]))
    second = dict(enumerate([1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]))
    gain = compare(second, first, higher_is_better=True)
    assert (gain.method, gain.n) == ("paired t", 10)
    assert gain.mean == pytest.approx(1.58)
    assert gain.p_value == pytest.approx(0.002833, abs=5e-7)
    assert gain.mean is not None and gain.half_width is not None
    assert (gain.mean - gain.half_width, gain.mean + gain.half_width) == pytest.approx(
        (0.7001142, 2.4598858), abs=1e-6
    )


def test_other_seeds_are_compared_by_welch() -> None:
    """The same numbers as two groups: t = −1.8608, df = 17.776, p = 0.07939, interval −3.3654832 to 0.2054832."""
    first = dict(enumerate([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]))
    second = {seed + 100: value for seed, value in enumerate([1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4])}
    gain = compare(first, second, higher_is_better=True)
    assert (gain.method, gain.n) == ("Welch's t", 10)
    assert gain.p_value == pytest.approx(0.07939, abs=5e-6)
    assert gain.mean is not None and gain.half_width is not None
    assert (gain.mean - gain.half_width, gain.mean + gain.half_width) == pytest.approx(
        (-3.3654832, 0.2054832), abs=1e-6
    )


def test_less_is_better_for_distances() -> None:
    low, high = {0: 1.0, 1: 1.5}, {0: 3.0, 1: 3.4}
    assert compare(low, high, higher_is_better=False).mean == pytest.approx(1.95)
    assert compare(low, high, higher_is_better=True).mean == pytest.approx(-1.95)
    apart = {seed + 7: value for seed, value in high.items()}
    assert compare(low, apart, higher_is_better=False).mean == pytest.approx(1.95)
    assert compare(low, apart, higher_is_better=True).mean == pytest.approx(-1.95)


def test_pairs_cancel_what_a_seed_does_to_both_rows() -> None:
    better, worse = {0: 10.0, 1: 20.0, 2: 31.0}, {0: 11.0, 1: 21.1, 2: 32.0}
    paired = compare(better, worse, higher_is_better=False)
    apart = compare(better, {seed + 5: value for seed, value in worse.items()}, higher_is_better=False)
    assert paired.half_width is not None and apart.half_width is not None
    assert paired.half_width < 0.2 < 10 < apart.half_width


def test_a_seed_without_a_value_breaks_its_pair() -> None:
    assert compare({0: 1.0, 1: 2.0, 2: None}, {0: 1.0, 1: 2.5}, higher_is_better=True).method == "paired t"
    assert (
        compare({0: 1.0, 1: 2.0, 2: 3.0}, {0: 1.0, 1: 2.5, 2: math.nan}, higher_is_better=True).method
        == "Welch's t"
    )


@pytest.mark.parametrize(
    ("better", "worse", "mean"),
    [
        ({}, {0: 1.0}, None),
        ({0: 1.0}, {0: None}, None),
        ({0: 1.0}, {0: 3.0}, 2.0),
        ({0: 1.0, 1: 2.0}, {0: 3.5}, 2.0),
    ],
)
def test_one_seed_gives_no_interval(better: Values, worse: Values, mean: float | None) -> None:
    gain = compare(better, worse, higher_is_better=False)
    assert (gain.mean, gain.half_width, gain.p_value, gain.method) == (mean, None, None, "none")


@pytest.mark.parametrize("shift", [0, 50])
def test_rows_without_any_spread(shift: int) -> None:
    worse = {seed + shift: 2.0 for seed in range(3)}
    equal = compare({0: 2.0, 1: 2.0, 2: 2.0}, worse, higher_is_better=False)
    assert (equal.mean, equal.half_width, equal.p_value) == (0, 0, 1)
    apart = compare({0: 1.0, 1: 1.0, 2: 1.0}, worse, higher_is_better=False)
    assert (apart.mean, apart.half_width, apart.p_value) == (1, 0, 0)


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.975])
@pytest.mark.parametrize("shift", [0, 50])
def test_the_confidence_of_a_gain(confidence: float, shift: int) -> None:
    """Against SciPy's quantiles: of paired differences, and with Welch's degrees of freedom. p stays the same."""
    generator = np.random.default_rng(3)
    first, second = generator.normal(5, 1, 4), generator.normal(3, 2, 4)
    worse = {seed + shift: float(value) for seed, value in enumerate(second)}
    found = compare(dict(enumerate(first.tolist())), worse, higher_is_better=True, confidence=confidence)
    parts = first.var(ddof=1) / 4, second.var(ddof=1) / 4
    df, error = (
        (sum(parts) ** 2 / sum(part**2 / 3 for part in parts), math.sqrt(sum(parts)))
        if shift
        else (3, (first - second).std(ddof=1) / 2)
    )
    assert found.half_width == pytest.approx(stats.t.ppf((1 + confidence) / 2, df) * error)
    assert found.p_value == pytest.approx(2 * stats.t.sf((first - second).mean() / error, df))
    usual = compare(dict(enumerate(first.tolist())), worse, higher_is_better=True)
    assert (found == usual) == (confidence == 0.95)


@given(
    st.lists(st.lists(st.one_of(st.none(), st.floats(-100, 100), st.just(math.nan)), max_size=5), max_size=5),
)
def test_spread_within_groups(groups: list[list[float | None]]) -> None:
    """The mean variance of groups, each counting by its degrees of freedom. One value alone counts for nothing."""
    kept = [[value for value in group if value is not None and math.isfinite(value)] for group in groups]
    kept = [group for group in kept if len(group) > 1]
    found = spread(groups)
    if not kept:
        assert found is None
        return
    deviations = np.concatenate([np.asarray(group) - np.mean(group) for group in kept])
    expected = math.sqrt(float(deviations @ deviations) / sum(len(group) - 1 for group in kept))
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_spread_of_pairs_and_of_equal_groups() -> None:
    pairs = [(1.0, 2.0), (5.0, 2.0)]
    assert spread(pairs) == pytest.approx(math.sqrt((1 + 9) / 4))  # √(Σd² / 2n)
    groups = np.random.default_rng(0).normal(size=(6, 4)) + 100 * np.arange(6)[:, None]
    assert spread(groups.tolist()) == pytest.approx(math.sqrt(groups.var(axis=1, ddof=1).mean()))
    assert (spread([]), spread([[1.0], [2.0]]), spread([[1.0, None], [math.nan, 3.0]])) == (None, None, None)


# Several pairs


def test_holms_own_example() -> None:
    """Four tests at 0.01, 0.04, 0.03, 0.005: multiplied by 4, 3, 2, 1 from the smallest, never falling."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_tests_that_could_not_be_made_count() -> None:
    assert holm([0.01, None, None]) == [pytest.approx(0.03), None, None]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_no_correction_and_bonferronis(p_values: list[float]) -> None:
    for p, corrected in zip(p_values, holm(p_values), strict=True):
        assert corrected is not None
        assert p <= corrected <= min(1, len(p_values) * p) + 1e-12


def gain(mean: float | None, half: float | None = None, p: float | None = None) -> Gain:
    return Gain(mean, half, p, 3, "paired t")


HOLDS, FAILS, UNSURE = gain(2, 1, 0.01), gain(-2, 1, 0.01), gain(2, 3, 0.2)
NO_INTERVAL, NOTHING = gain(2.0), gain(None)


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ([HOLDS], "holds"),
        ([HOLDS, HOLDS, HOLDS], "holds"),
        ([HOLDS, UNSURE], "undecided"),
        ([HOLDS, NOTHING], "undecided"),
        ([HOLDS, NO_INTERVAL], "undecided"),
        ([FAILS], "fails"),
        ([HOLDS, FAILS], "fails"),
        ([FAILS, NOTHING], "fails"),
        ([UNSURE], "undecided"),
        ([NO_INTERVAL], "undecided"),
        ([NOTHING, NOTHING], "not measured"),
        ([], "not measured"),
        ([gain(0, 0, 1.0)], "undecided"),
    ],
)
def test_the_verdict_of_a_claim(gains: list[Gain], verdict: str) -> None:
    assert decide([("a", "b", one) for one in gains])[1] == verdict


def test_a_claim_needs_no_correction_to_hold() -> None:
    """All of its pairs must reject, each at 5%: 20 of them at p = 0.04 do."""
    pairs, verdict = decide([("a", "b", gain(2, 1.9, 0.04))] * 20)
    assert verdict == "holds"
    assert {pair.verdict for pair in pairs} == {"holds"}


def test_a_reversed_pair_among_many_must_survive_the_correction() -> None:
    reversed_pair = gain(-2, 1.5, 0.02)
    assert decide([("a", "b", reversed_pair), ("a", "c", HOLDS)])[1] == "fails"
    pairs, verdict = decide([("a", "b", reversed_pair), *[("a", "c", UNSURE)] * 3])
    assert pairs[0].holm_p == pytest.approx(0.08)
    assert verdict == "undecided"


def test_three_equal_rows_rarely_get_a_verdict() -> None:
    """Of claims about rows without any difference, at most 2.5% hold, and at most 5% fail."""
    rng, verdicts = random.Random(0), []
    for _ in range(800):
        rows = [{seed: rng.gauss(0, 1) for seed in range(3)} for _ in range(3)]
        pairs = [("a", "b", compare(rows[0], other, higher_is_better=True)) for other in rows[1:]]
        verdicts.append(decide(pairs)[1])
    # Three standard deviations above the rates.
    assert verdicts.count("holds") <= 800 * 0.025 + 3 * math.sqrt(800 * 0.025)
    assert verdicts.count("fails") <= 800 * 0.05 + 3 * math.sqrt(800 * 0.05)
    assert verdicts.count("fails") > 0


@pytest.mark.parametrize(
    ("p_value", "once", "twice"), [(0.051, False, False), (0.04, True, False), (0.02, True, True)]
)
def test_the_error_of_a_look_decides_what_fails(p_value: float, once: bool, twice: bool) -> None:
    """Also of a corrected p-value: a third pair multiplies it by three."""
    for confidence, fails in ((0.95, once), (0.975, twice)):
        assert decide([("a", "b", gain(-2, 1, p_value))], confidence)[1] == ("fails" if fails else "undecided")
        several = [("a", "b", gain(-2, 1, p_value / 3)), *[("a", "c", UNSURE)] * 2]
        assert decide(several, confidence)[1] == ("fails" if fails else "undecided")


def test_two_looks_at_equal_rows_rarely_give_a_verdict() -> None:
    """After three seeds, and after six if the first look is undecided. The errors of both stay those of one."""
    rng, verdicts = random.Random(1), []
    for _ in range(800):
        rows = [{seed: rng.gauss(0, 1) for seed in range(6)} for _ in range(3)]
        for seeds in (3, 6):
            seen = [{seed: row[seed] for seed in range(seeds)} for row in rows]
            pairs = [
                ("a", "b", compare(seen[0], other, higher_is_better=True, confidence=0.975)) for other in seen[1:]
            ]
            verdict = decide(pairs, 0.975)[1]
            if verdict != "undecided":
                break
        verdicts.append(verdict)
    # Three standard deviations above the rates.
    assert verdicts.count("holds") <= 800 * 0.025 + 3 * math.sqrt(800 * 0.025)
    assert verdicts.count("fails") <= 800 * 0.05 + 3 * math.sqrt(800 * 0.05)
    assert verdicts.count("fails") > 0


# Kendall


def tau_by_hand(x: list[int], y: list[int]) -> float | None:
    """τ-b by its definition, over all pairs."""
    concordant = discordant = ties_x = ties_y = 0
    for (a, b), (c, d) in itertools.combinations(zip(x, y, strict=True), 2):
        product = (a - c) * (b - d)
        concordant += product > 0
        discordant += product < 0
        ties_x += a == c
        ties_y += b == d
    pairs = len(x) * (len(x) - 1) / 2
    below = math.sqrt((pairs - ties_x) * (pairs - ties_y))
    return (concordant - discordant) / below if below else None


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=7))
def test_kendalls_tau(points: list[tuple[int, int]]) -> None:
    x, y = [point[0] for point in points], [point[1] for point in points]
    expected = tau_by_hand(x, y)
    found = kendall_tau(x, y)
    assert found == (None if expected is None else pytest.approx(expected, abs=1e-12))


def test_kendalls_ends() -> None:
    assert kendall_tau([1, 2, 3], [10, 20, 30]) == pytest.approx(1)
    assert kendall_tau([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert kendall_tau([1, 1, 1], [3, 2, 1]) is None
