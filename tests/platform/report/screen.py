"""Console and clock of the displays under test."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from causalfusion_platform.report import bar


class Screen:
    """A console of 80 columns that writes into memory."""

    def __init__(self, **options: Any) -> None:
        self.file = io.StringIO()
        self.console = Console(file=self.file, width=80, highlight=False, **options)

    @property
    def text(self) -> str:
        return self.file.getvalue()

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()


class Clock:
    """The time that displays see."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(bar, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(bar, "_LOOK_SECONDS", 3600.0)  # no line comes by itself: this clock decides
