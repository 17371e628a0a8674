"""The dashboard's server ends with the command that started it, all its processes included."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.platform.tracking.recorded import until

from causalfusion_platform.launch.runs.dashboard import serve, server_command

COMMAND = """if True:
    import sys
    from causalfusion_platform.launch.runs.dashboard import serve
    sys.exit(serve([sys.executable, "-c", sys.argv[1], sys.argv[2]]))
"""
# As MLflow's: a process that starts another one. Neither ends while the other stays.
SERVER = """if True:
    import os, signal, subprocess, sys, time
    worker = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(300)"
    child = subprocess.Popen([sys.executable, "-c", worker])
    with open(sys.argv[1] + ".part", "w") as file:
        file.write(f"{os.getpid()} {child.pid}")
    os.rename(sys.argv[1] + ".part", sys.argv[1])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    time.sleep(300)
"""
STUBBORN = SERVER.replace("lambda *_: sys.exit(0)", "signal.SIG_IGN")


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.processes
@pytest.mark.parametrize(
    ("signals", "server"),
    [
        ([signal.SIGTERM], SERVER),
        ([signal.SIGINT], SERVER),
        ([signal.SIGHUP], SERVER),
        ([signal.SIGTERM, signal.SIGTERM], STUBBORN),
    ],
)
def test_a_signal_ends_all_processes_of_the_server(
    tmp_path: Path, signals: list[signal.Signals], server: str
) -> None:
    pids = tmp_path / "pids"
    with subprocess.Popen([sys.executable, "-c", COMMAND, server, str(pids)]) as command:
        until(pids.exists)
        started = [int(pid) for pid in pids.read_text().split()]
        assert all(map(lives, started))
        for number in signals:
            command.send_signal(number)
            if server is STUBBORN:
                until(lambda: not lives(started[1]))  # its child is asked with it
        assert command.wait(60) == 75
    assert not any(map(lives, started))


def test_a_server_that_ends_by_itself_gives_its_status() -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert serve([sys.executable, "-c", "raise SystemExit(7)"]) == 7
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_server_is_that_of_the_folder_of_runs(tmp_path: Path) -> None:
    command = server_command(tmp_path / "mlflow.db", 5001)
    assert command[1:4] == ["-m", "mlflow", "server"]
    assert f"sqlite:///{tmp_path / 'mlflow.db'}" in command
    assert (tmp_path / "mlartifacts").as_uri() in command
    assert os.environ.get("MLFLOW_DISABLE_TELEMETRY") is None
