"""Commands in this process, how they end, and what a refusal looks like."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from causalfusion_platform.cli.main import main


@dataclass
class Result:
    """How a command ended."""

    status: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs a `causalfusion` command in this process."""

    def call(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["causalfusion", *arguments])
        monkeypatch.setattr(sys, "path", [*sys.path])  # a command adds the current directory
        status: object = 0
        try:
            main()
        except SystemExit as end:
            status = end.code or 0
        out, err = capsys.readouterr()
        assert isinstance(status, int)
        return Result(status, out, err)

    return call


def check_refusal(result: Result, *parts: str) -> None:
    assert result.status == 2
    # The first command of a process says that it loads libraries.
    assert re.match(r"([^\n]+: loading libraries\n)?error: ", result.err)
    assert result.err.count("error: ") == 1
    assert "Traceback" not in result.err
    assert result.out == ""
    for part in parts:
        assert part in result.err
