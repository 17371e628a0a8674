"""Storage that fails, now and then or for good."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.platform.data.sources.makers import STRICT, digit, write_files

from causalfusion_platform.data.sources import open_source
from causalfusion_platform.data.sources.filesystem import read_patiently


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Record pauses instead of taking them."""
    taken: list[float] = []
    monkeypatch.setattr(time, "sleep", taken.append)
    return taken


def failing(*outcomes: Exception | bytes) -> Callable[[], bytes]:
    """Return a read that fails or succeeds as it is told, call by call."""
    rest = list(outcomes)

    def read() -> bytes:
        outcome = rest.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return read


def test_the_third_try_counts(pauses: list[float]) -> None:
    assert read_patiently(failing(OSError("reset"), TimeoutError(), b"x")) == b"x"
    assert len(pauses) == 2
    assert 0 < pauses[0] < pauses[1] < 1


def test_after_three_failures_the_last_one_is_returned(pauses: list[float]) -> None:
    last = OSError(5, "Input/output error")
    assert read_patiently(failing(OSError("a"), OSError("b"), last, b"never")) is last
    assert len(pauses) == 2


def test_a_clients_own_exception_becomes_an_os_error(pauses: list[float]) -> None:
    result = read_patiently(failing(*[KeyError("no such bucket")] * 3))
    assert type(result) is OSError
    assert str(result) == "KeyError: 'no such bucket'"


@pytest.mark.parametrize(
    "error", [FileNotFoundError(), PermissionError(), IsADirectoryError(), NotADirectoryError()]
)
def test_definite_answers_are_not_asked_for_again(pauses: list[float], error: OSError) -> None:
    assert read_patiently(failing(error, b"never")) is error
    assert pauses == []


def test_one_bad_file_does_not_end_the_reading(tmp_path: Path, pauses: list[float]) -> None:
    write_files(tmp_path / "s", {f"a/{row}.png": digit(row) for row in range(3)})
    source = open_source("s", policies=STRICT)
    table = source.listing().table
    (tmp_path / "s/a/1.png").unlink()
    contents = list(source.reader().read(table))
    assert contents[0] == digit(0)
    assert isinstance(contents[1], FileNotFoundError)
    assert contents[2] == digit(2)
