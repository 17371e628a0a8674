"""The platform's log on a console, and as a library's user sees it."""

from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console

from causalfusion_platform.report.log import PLATFORM, log_to


def test_lines_are_not_broken_and_are_no_markup() -> None:
    screen = io.StringIO()
    line = f"[red] see {'a/long/path/' * 12}"
    with log_to(Console(file=screen, width=80)):
        logging.getLogger(f"{PLATFORM}.launch").info(line)
        logging.getLogger(f"{PLATFORM}.launch").debug("not shown")
        logging.getLogger("elsewhere").warning("not shown")
    logging.getLogger(PLATFORM).info("afterwards")
    assert screen.getvalue() == f"{line}\n"


def test_of_some_packages_only_warnings_are_printed() -> None:
    screen = io.StringIO()
    with log_to(Console(file=screen), ["launch.generating"]):
        for package in ("launch.generating.generate", "launch.generating", "launch.generating_more", "launch"):
            logging.getLogger(f"{PLATFORM}.{package}").info(package)
        logging.getLogger(f"{PLATFORM}.launch.generating.generate").warning("other versions")
    assert screen.getvalue().splitlines() == ["launch.generating_more", "launch", "other versions"]


def test_a_librarys_user_can_listen(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger=PLATFORM):
        logging.getLogger(f"{PLATFORM}.train").info("12 of 13 shards")
    assert caplog.messages == ["12 of 13 shards"]
