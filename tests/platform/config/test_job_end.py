"""The last line of a job's log."""

from __future__ import annotations

import pytest

from causalfusion_platform.config.errors import STATUSES
from causalfusion_platform.config.job_end import end_line, status_in


@pytest.mark.parametrize("status", STATUSES)
def test_the_line_is_read_back(status: int) -> None:
    log = f"causalfusion: exit status 3 (gave up)\nsome words\n{end_line(status)}\n"
    assert status_in(log) == status


def test_a_log_without_the_line() -> None:
    assert status_in("") is None
    assert status_in("the words causalfusion: exit status 75 within a line\n") is None
