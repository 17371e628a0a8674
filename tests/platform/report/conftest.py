"""Fixtures of the tests of reports."""

from __future__ import annotations

import pytest
from tests.platform.report.screen import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Return a clock for the displays, to be set by hand."""
    return Clock(monkeypatch)
