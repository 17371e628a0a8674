"""Numbers and durations for readers."""

from __future__ import annotations

import pytest

from causalfusion_platform.report.numbers import duration, share, significant


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (4.4, "4 s"),
        (119, "119 s"),
        (120, "2 min"),
        (7100, "118 min"),
        (7200, "2 h"),
        (3600 * 30, "30 h"),
        (86400 * 3, "3 days"),
        (86400 * 300, "300 days"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.995, 3, "0.995"),
        (0.9995, 3, "0.9995"),
        (0.99996, 4, "0.99996"),
        (-0.99996, 4, "-0.99996"),
        (0.99994, 4, "0.9999"),
        (1.0, 3, "1"),
        (12.345678, 4, "12.35"),
        (0.0, 3, "0"),
        (float("nan"), 3, "nan"),
        (float("inf"), 3, "inf"),
    ],
)
def test_a_number_below_one_never_reads_one(value: float, digits: int, text: str) -> None:
    assert significant(value, digits) == text


@pytest.mark.parametrize(
    ("value", "places", "text"),
    [
        (0.0, 0, "0%"),
        (0.004, 0, "< 1%"),
        (0.0004, 1, "< 0.1%"),
        (0.5, 0, "50%"),
        (0.995, 0, "> 99%"),
        (0.9996, 1, "> 99.9%"),
        (0.9994, 1, "99.9%"),
        (1.0, 1, "100.0%"),
        (1.004, 0, "100%"),
    ],
)
def test_a_share_reads_0_or_100_only_if_it_is(value: float, places: int, text: str) -> None:
    assert share(value, places) == text
