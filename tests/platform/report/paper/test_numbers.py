"""Numbers as a report shows them."""

from __future__ import annotations

import pytest

from causalfusion_platform.report.paper.numbers import gain_with_interval, p_text, printed_values, with_interval
from causalfusion_platform.report.paper.statistics import Estimate, Gain


@pytest.mark.parametrize(
    ("mean", "half", "text"),
    [
        (12.3456, 0.4321, "12.35 ± 0.43"),
        (12.3456, 4.321, "12.3 ± 4.3"),
        (12.3456, 43.21, "12 ± 43"),
        (1234.5, 432.1, "1234 ± 432"),
        (0.73456, 0.0123, "0.735 ± 0.012"),
        (12.0, 0.1, "12.00 ± 0.10"),
        (0.9, 1e-9, "0.9 ± 1e-09"),
        (12.3456, 0.0, "12.35 ± 0"),
        (0.995, 0.0, "0.995 ± 0"),
        (12.3456, None, "12.35"),
        (None, None, "–"),
    ],
)
def test_the_interval_decides_the_digits(mean: float | None, half: float | None, text: str) -> None:
    assert with_interval(Estimate(3, mean, half)) == text


@pytest.mark.parametrize(
    ("mean", "half", "text"),
    [
        (1.5, 0.21, "+1.50 ± 0.21"),
        (-1.5, 0.21, "−1.50 ± 0.21"),
        (0.0, 1.0, "+0.0 ± 1.0"),
        (None, None, "–"),
        (-2.0, None, "−2"),
    ],
)
def test_a_gain_has_a_sign(mean: float | None, half: float | None, text: str) -> None:
    assert gain_with_interval(Gain(mean, half, None, 3, "paired t")) == text


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([12.5, 13.78, None], ["12.50", "13.78", "–"]),
        ([166.1, 180.9], ["166.1", "180.9"]),
        ([12.0, 13.0], ["12", "13"]),
        ([None], ["–"]),
        ([356.69, 0.1], ["356.69", "0.10"]),
    ],
)
def test_printed_values_get_back_the_zeros_at_their_ends(values: list[float | None], texts: list[str]) -> None:
    assert printed_values(values) == texts


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.0004, "< 0.001"), (0.001, "0.001"), (0.0437, "0.044"), (0.4, "0.4"), (1.0, "1")],
)
def test_p_values(value: float | None, text: str) -> None:
    assert p_text(value) == text
