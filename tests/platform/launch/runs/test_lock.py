"""One launch of a run at a time, whatever becomes of the process that holds the lock."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from causalfusion_platform.cli.ending import ending_of
from causalfusion_platform.config.errors import STOPPED, WRONG, UserError
from causalfusion_platform.launch.runs.folder import RunFolder
from causalfusion_platform.launch.runs.lock import (
    LOCK_FILE,
    StillUnderWay,
    Turn,
    UnderWay,
    in_turn,
    is_under_way,
    only_launch,
    refuse_if_under_way,
)

_HOLD = """
import sys
from pathlib import Path
from causalfusion_platform.launch.runs.lock import only_launch
with only_launch(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def holder(run_dir: Path) -> Iterator[subprocess.Popen[str]]:
    """Hold the lock in another process."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(run_dir)], stdin=pipe, stdout=pipe, text=True
    ) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def enter(run_dir: Path) -> None:
    with only_launch(run_dir):
        pass


def test_another_process_holds_it_until_it_is_killed(tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "mine"
    with holder(run_dir) as process:
        assert is_under_way(run_dir)
        for refuse in (refuse_if_under_way, enter):
            with pytest.raises(UserError) as caught:
                refuse(run_dir)
            message = str(caught.value)
            assert "run 'mine' is under way" in message
            assert f"process {process.pid} on {os.uname().nodename}, since 20" in message
            assert "causalfusion runs show mine" in message
            assert "name=" in message
        process.kill()
        process.wait(timeout=300)
        assert not is_under_way(run_dir)
        refuse_if_under_way(run_dir)
        with only_launch(run_dir):
            assert is_under_way(run_dir)


def test_a_process_that_ends_by_itself_lets_go(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        assert process.communicate("\n", timeout=300)[0] == ""
        assert process.returncode == 0
    with only_launch(tmp_path):
        pass


def test_within_one_process_too(tmp_path: Path) -> None:
    """Trials of a sweep are threads of one process."""
    with only_launch(tmp_path), pytest.raises(UserError, match=f"process {os.getpid()} on"), only_launch(tmp_path):
        raise AssertionError
    with only_launch(tmp_path), only_launch(tmp_path / "other"):
        pass


def test_an_error_lets_go(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), only_launch(tmp_path):
        raise KeyboardInterrupt
    assert not is_under_way(tmp_path)


def test_looking_neither_makes_nor_holds_anything(tmp_path: Path) -> None:
    assert not is_under_way(tmp_path / "none")
    refuse_if_under_way(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []
    with only_launch(tmp_path):
        pass
    assert not is_under_way(tmp_path)
    with only_launch(tmp_path):
        pass


def test_those_who_ask_are_no_launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither for each other, nor for one who wants to launch meanwhile."""
    enter(tmp_path)
    with (tmp_path / LOCK_FILE).open() as asking:
        fcntl.flock(asking, fcntl.LOCK_SH)
        assert not is_under_way(tmp_path)
        monkeypatch.setattr("causalfusion_platform.launch.runs.lock._ASKED_SECONDS", 60)
        answered = threading.Timer(0.2, fcntl.flock, (asking, fcntl.LOCK_UN))
        answered.start()
        enter(tmp_path)
        answered.join()


def test_a_link_in_place_of_the_lock_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / LOCK_FILE).symlink_to(tmp_path / "mine")
    with pytest.raises(OSError):
        enter(tmp_path)
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.parametrize("content", ["", "{", '{"pid": 3}'])
def test_a_holder_that_cannot_be_named(tmp_path: Path, content: str) -> None:
    with only_launch(tmp_path):
        (tmp_path / LOCK_FILE).write_text(content)
        with pytest.raises(UserError, match="is under way: another process\n"):
            refuse_if_under_way(tmp_path)


def test_the_newest_holder_is_named_alone(tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).write_text("x" * 1000)
    with only_launch(tmp_path), pytest.raises(UserError, match=f"process {os.getpid()} on"):
        refuse_if_under_way(tmp_path)


def test_launches_in_turn(tmp_path: Path) -> None:
    """It waits for whoever holds the lock, and tries again where somebody else was faster."""
    tries: list[bool] = []

    def launch() -> None:
        tries.append(is_under_way(tmp_path))
        if len(tries) == 1:
            raise UnderWay("somebody was faster")
        enter(tmp_path)

    waits = threading.Thread(target=in_turn, args=(tmp_path, launch, 0.01))
    with holder(tmp_path):
        waits.start()
        waits.join(0.3)
        assert waits.is_alive()
        assert tries == []
    waits.join(30)
    assert tries == [False, False]


def test_other_faults_are_not_tried_again(tmp_path: Path) -> None:
    def launch() -> None:
        raise UserError("no such key")

    with pytest.raises(UserError, match="no such key"):
        in_turn(tmp_path, launch)


def turn_of(run_dir: Path, seconds: float) -> Turn:
    return Turn(RunFolder(run_dir).refuse_if_under_way, seconds)


def test_a_turn_waits_for_the_launch_under_way(tmp_path: Path, log_lines: list[str]) -> None:
    """It says once for whom it waits."""
    took: list[int] = []

    def launch() -> None:
        turn = turn_of(tmp_path, 300)
        turn.wait()
        with RunFolder(tmp_path).lock(turn=turn):
            took.append(os.getpid())

    with holder(tmp_path) as process:
        waits = threading.Thread(target=launch)
        waits.start()
        while not log_lines:
            waits.join(0.01)
        waits.join(1.5)  # longer than the interval of asking
        assert (waits.is_alive(), took) == (True, [])
        [line] = log_lines
        assert f"run '{tmp_path.name}' is under way: process {process.pid} on" in line
        assert "waiting up to 300 s" in line
    waits.join(30)
    assert took == [os.getpid()]


@pytest.mark.parametrize("seconds", [0.0, 0.2])
def test_a_turn_has_an_end(tmp_path: Path, seconds: float) -> None:
    """After a wait a scheduler may give the command again. Without one the name may be a mistake."""

    def enter_in_turn() -> None:
        with RunFolder(tmp_path).lock(turn=turn_of(tmp_path, seconds)):
            raise AssertionError

    with holder(tmp_path) as process:
        for start in (turn_of(tmp_path, seconds).wait, enter_in_turn):
            with pytest.raises(UnderWay) as caught:
                start()
            message = str(caught.value)
            assert f"process {process.pid} on" in message
            assert "name=…" in message
            ending = ending_of(caught.value)
            assert ending.status == (STOPPED if seconds else WRONG)
            assert ("supervision.lock_seconds" in message, "after a wait of 0.2 s" in message) == (
                (True, True) if seconds else (False, False)
            )


def test_one_turn_for_all_its_steps(tmp_path: Path) -> None:
    """Time that was spent before the lock is taken counts."""
    turn = turn_of(tmp_path, 0.2)
    turn.wait()
    time.sleep(0.3)
    with holder(tmp_path), pytest.raises(StillUnderWay), RunFolder(tmp_path).lock(turn=turn):
        raise AssertionError


_WAIT = """
import logging, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
from pathlib import Path
from causalfusion_platform.cli.ending import run_to_end
from causalfusion_platform.launch.runs.folder import RunFolder
from causalfusion_platform.launch.runs.lock import Turn
logging.basicConfig(level=logging.INFO)
run_to_end(Turn(RunFolder(Path(sys.argv[1])).refuse_if_under_way, 600).wait)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_wait(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-c", _WAIT, str(tmp_path)]
    with holder(tmp_path), subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as waits:
        assert waits.stderr
        assert "waiting up to 600 s" in waits.stderr.readline()
        waits.send_signal(number)
        _, errors = waits.communicate(timeout=300)
        assert waits.returncode == STOPPED
        assert "stopped by" in errors
        assert is_under_way(tmp_path)
