"""Which warnings of libraries are left out: those listed, with reasons, here and in processes started from here."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import warnings

import pytest

from causalfusion_platform.library_warnings import BEGINNINGS, LEVELS, LOGGED, leave_out

CODE = """
import warnings
warnings.warn("The maximum number of concurrent tasks for 'X' is set to 3, but the operator only received 1")
warnings.warn("`torch.distributed.all_gather_into_tensor` is deprecated. Please use another", FutureWarning)
warnings.warn("the maximum is another one")
"""


def said_by(environ: dict[str, str]) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, env={**os.environ, **environ}
    )
    assert done.returncode == 0 or "Error" in done.stderr or "Warning" in done.stderr
    return [line for line in done.stderr.splitlines() if "Warning: " in line]


def test_processes_started_from_here_print_only_other_warnings() -> None:
    environ = {"PYTHONWARNINGS": ""}
    assert len(said_by(environ)) == 3
    for _ in range(2):
        leave_out(environ)
        (line,) = said_by(environ)
        assert line.endswith("UserWarning: the maximum is another one")


def test_what_the_user_asks_for_comes_first() -> None:
    environ = {"PYTHONWARNINGS": "error::FutureWarning"}
    leave_out(environ)
    *_, last = said_by(environ)
    assert last.startswith("FutureWarning: `torch.distributed.all_gather_into_tensor` is deprecated")


def test_this_process_prints_only_other_warnings() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.resetwarnings()
        leave_out({})
        for beginning in BEGINNINGS:
            warnings.warn(f"{beginning} and so on", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    assert [str(one.message) for one in caught] == ["something else"]


def test_one_message_of_a_logger_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    leave_out({})
    logger = logging.getLogger("DeepSpeed")
    count = len(logger.filters)
    leave_out({})
    assert len(logger.filters) == count
    logger.propagate = True
    logger.addHandler(caplog.handler)
    try:
        logger.warning("**** You are using ZeRO with an untested optimizer, proceed with caution *****")
        logger.warning("**** something else")
    finally:
        logger.removeHandler(caplog.handler)
    assert {*caplog.messages} == {"**** something else"}


def test_each_has_a_reason_and_fits_the_variable() -> None:
    for beginning, reason in BEGINNINGS.items():
        assert not {",", ":"} & {*beginning}
        assert reason
    assert all(reason for _, reason in [*LOGGED.values(), *LEVELS.values()])
