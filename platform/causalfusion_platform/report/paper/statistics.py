"""Statistics over a few training seeds: means with intervals, differences of rows, verdicts on orderings.

With three seeds most honest answers are "undecided". The rules below are fixed before a number is seen:

- A row's interval is Student's t over its seeds. It covers the change that another seed would make. It omits
  an error that all rows share, such as the bias of a Fréchet distance of few samples.
- Two rows with the same seeds saw the same data order, noise and AR splits. Their difference is taken seed by seed
  (paired t). Other rows are compared by Welch's t, which assumes neither pairs nor equal spreads.
- A table may plan two looks: after its seeds, and after more of them if a claim is undecided. Each look then has
  half the error, 2.5%, so that both together err in at most 5% (Bonferroni). Its intervals are of 97.5%.
- A claim says that *all* its pairs are ordered. It holds if each pair's own interval lies above 0. Where every
  test must reject, none needs a correction (Berger 1982).
- A claim fails if *some* pair is the other way round. With more pairs that happens by chance more easily, so
  p-values are corrected over the claim's pairs (Holm 1979).
- Nothing is corrected over claims and tables.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
"""Of the interval of a row, and of a claim that is looked at once."""

Verdict = Literal["holds", "fails", "undecided", "not measured"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
DECIDED: tuple[Verdict, ...] = ("holds", "fails")
Method = Literal["paired t", "Welch's t", "none"]
Values = Mapping[int, float | None]
"""Seed → value. None, NaN and infinity stand for a missing value."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and its 95% interval, mean ± half_width."""

    n: int
    """Seeds with a value."""
    mean: float | None
    """None: no seed has one."""
    half_width: float | None
    """None with fewer than two seeds: one says nothing about the next."""


@dataclass(frozen=True)
class Gain:
    """By how much one row is better than another, in units of the metric. Below 0 it is worse."""

    mean: float | None
    """None: one of the rows has no value."""
    half_width: float | None
    """Of the interval. None: too few seeds for one."""
    p_value: float | None
    """Two-sided, of no difference at all."""
    n: int
    """Pairs of seeds. Without pairs: seeds of the row that has fewer."""
    method: Method


@dataclass(frozen=True)
class Pair:
    """Two rows of a claim."""

    better: str
    worse: str
    gain: Gain
    holm_p: float | None
    """The p-value corrected over the claim's pairs."""
    verdict: Verdict
    """Holds: the interval lies above 0. Fails: the gain is below 0, its corrected p-value at most the error."""


def finite(values: Values) -> dict[int, float]:
    """Return the values that are numbers, by seed."""
    return {seed: float(value) for seed, value in values.items() if value is not None and math.isfinite(value)}


def estimate(values: Iterable[float | None]) -> Estimate:
    """Return the mean of the finite values and Student's 95% interval, half width t₀.₉₇₅(n − 1) · s / √n."""
    some = list(finite(dict(enumerate(values))).values())
    if not some:
        return Estimate(0, None, None)
    half = _student(some)[0] if len(some) > 1 else None
    return Estimate(len(some), float(np.mean(some)), half)


def compare(better: Values, worse: Values, *, higher_is_better: bool, confidence: float = CONFIDENCE) -> Gain:
    """Return by how much the first row is better: paired where both have the same seeds, else by Welch's t.

    Fewer than two seeds of a row give neither an interval nor a p-value.

    Args:
        better: values of the first row.
        worse: values of the second row.
        higher_is_better: of the metric.
        confidence: of the interval.
    """
    first, second = finite(better), finite(worse)
    sign = 1 if higher_is_better else -1
    if not first or not second:
        return Gain(None, None, None, 0, "none")
    n = min(len(first), len(second))
    method: Method = "Welch's t"
    samples = [list(first.values()), list(second.values())]
    if first.keys() == second.keys():
        method, samples = "paired t", [[value - second[seed] for seed, value in first.items()]]
    mean = sign * float(np.mean(samples[0]) - (np.mean(samples[1]) if len(samples) > 1 else 0))
    return (
        Gain(mean, *_student(*samples, confidence=confidence), n, method)
        if n > 1
        else Gain(mean, None, None, n, "none")
    )


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return Holm's corrected p-values. A test that could not be made (None) counts as if it had not rejected."""
    order = sorted(range(len(p_values)), key=lambda index: _or_one(p_values[index]))
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * _or_one(p_values[index])))
        corrected[index] = None if p_values[index] is None else largest
    return corrected


def decide(
    pairs: Sequence[tuple[str, str, Gain]], confidence: float = CONFIDENCE
) -> tuple[tuple[Pair, ...], Verdict]:
    """Decide the claim that in all pairs (better, worse, gain) the first row is better.

    Args:
        pairs: whose intervals have the confidence.
        confidence: 1 − the error of this look.

    Returns:
        The pairs with their verdicts, and the claim's: `holds` if all hold, `fails` if some pair fails,
        `not measured` if no pair is, else `undecided`.
    """
    corrected = holm([gain.p_value for _, _, gain in pairs])
    decided = tuple(
        Pair(better, worse, gain, p, _pair_verdict(gain, p, 1 - confidence))
        for (better, worse, gain), p in zip(pairs, corrected, strict=True)
    )
    verdicts = {pair.verdict for pair in decided}
    if "fails" in verdicts:
        return decided, "fails"
    return decided, verdicts.pop() if len(verdicts) == 1 else "undecided" if verdicts else "not measured"


def spread(values: Iterable[Iterable[float | None]]) -> float | None:
    """Return the standard deviation within groups of values, pooled over groups. None: no group has two values."""
    groups = [list(finite(dict(enumerate(group))).values()) for group in values]
    degrees = sum(len(group) - 1 for group in groups if len(group) > 1)
    squares = sum((len(group) - 1) * float(np.var(group, ddof=1)) for group in groups if len(group) > 1)
    return math.sqrt(squares / degrees) if degrees else None


def kendall_tau(printed: Sequence[float], measured: Sequence[float]) -> float | None:
    """Return Kendall's τ-b: 1 for the same order, −1 for the reverse. None where all of one side are equal."""
    if len(set(printed)) < 2 or len(set(measured)) < 2:
        return None
    return float(stats.kendalltau(printed, measured, variant="b").statistic)


def _pair_verdict(gain: Gain, corrected: float | None, error: float) -> Verdict:
    if gain.mean is None:
        return "not measured"
    if gain.half_width is None or corrected is None:
        return "undecided"
    if gain.mean - gain.half_width > 0:
        return "holds"
    return "fails" if gain.mean < 0 and corrected <= error else "undecided"


def _student(
    sample: Sequence[float], other: Sequence[float] | None = None, *, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Return the half width of the interval of a mean, or of a difference of means, and its two-sided p-value."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # SciPy warns of samples without spread
        test = stats.ttest_1samp(sample, 0) if other is None else stats.ttest_ind(sample, other, equal_var=False)
        low, high = test.confidence_interval(confidence)
    # Without spread and without a difference SciPy has 0 / 0.
    return float(high - low) / 2, 1.0 if math.isnan(test.pvalue) else float(test.pvalue)


def _or_one(p_value: float | None) -> float:
    return 1.0 if p_value is None else p_value
