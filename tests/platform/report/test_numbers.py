"""Numbers and durations for readers."""

from __future__ import annotations

import pytest

from causalfusion_platform.report.numbers import duration


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
