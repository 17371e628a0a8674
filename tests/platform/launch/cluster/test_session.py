"""Ports, and a local Ray that starts slowly or not at all. No Ray is started here."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from causalfusion_platform.config.errors import MachineError, UserError
from causalfusion_platform.launch.cluster import session
from causalfusion_platform.launch.cluster.session import free_port, port_is_free, ray_session


def test_a_free_port_can_be_listened_on() -> None:
    port = free_port()
    assert 1024 <= port < 65536
    assert port_is_free(port)
    with socket.create_server(("127.0.0.1", port)):
        assert not port_is_free(port)
    assert port_is_free(port)


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_a_port_that_is_listened_on(address: str) -> None:
    with socket.create_server((address, 0)) as listening:
        assert not port_is_free(listening.getsockname()[1])


@pytest.mark.parametrize("port", [-1, 65536, 99999])
def test_a_number_that_is_no_port(port: int) -> None:
    assert not port_is_free(port)


IMPATIENT = "RAY_gcs_server_port_wait_time_s"


class SlowRay:
    """Stands for `ray.init` on a busy machine: it starts processes, and gives up the first times."""

    def __init__(self, fails: int, error: BaseException) -> None:
        self.fails, self.error = fails, error
        self.started: list[tuple[Path, psutil.Process]] = []
        self.ended = 0

    def init(self, **options: Any) -> None:
        folder = Path(options["_temp_dir"])
        sleeping = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", str(folder)])
        self.started.append((folder, psutil.Process(sleeping.pid)))
        assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
        assert os.environ["RAY_API_SERVER_ADDRESS"].endswith(f":{options['dashboard_port']}")
        if len(self.started) <= self.fails:
            raise self.error

    def shutdown(self) -> None:
        self.ended += 1


@pytest.fixture
def slow_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    made: list[SlowRay] = []

    def make(fails: int, error: BaseException | None = None) -> SlowRay:
        made.append(SlowRay(fails, error or Exception("The current node timed out during startup.\n…")))
        monkeypatch.setattr(ray, "init", made[-1].init)
        monkeypatch.setattr(ray, "shutdown", made[-1].shutdown)
        monkeypatch.setattr(ray, "is_initialized", lambda: False)
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
        return made[-1]

    yield make
    for _, process in (one for fake in made for one in fake.started):
        if process.is_running():
            process.kill()


def test_a_ray_that_starts_slowly_is_started_again(slow_ray: Any, log_lines: list[str]) -> None:
    fake = slow_ray(2)
    with ray_session():
        assert [process.is_running() for _, process in fake.started] == [False, False, True]
        assert [folder.parent.exists() for folder, _ in fake.started] == [False, False, True]
    assert not any(folder.parent.exists() for folder, _ in fake.started)
    assert fake.ended == 3
    assert "RAY_API_SERVER_ADDRESS" not in os.environ
    said = "Ray did not start (Exception: The current node timed out during startup.); starting it again"
    assert log_lines[1:] == [said, said]


def test_a_ray_that_never_starts_is_one_message(slow_ray: Any) -> None:
    fake = slow_ray(99)
    with pytest.raises(MachineError) as caught, ray_session():
        pytest.fail("it did not start")
    assert len(fake.started) == session._TRIES
    assert not any(process.is_running() for _, process in fake.started)
    assert "Ray did not start on this machine, tried 3 times: Exception: The current node" in str(caught.value)
    assert "give the same command again" in str(caught.value)


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(15)])
def test_a_request_to_stop_is_no_slow_start(slow_ray: Any, stop: BaseException) -> None:
    fake = slow_ray(99, stop)
    with pytest.raises(type(stop)), ray_session():
        pytest.fail("it did not start")
    assert len(fake.started) == 1


def test_a_cluster_that_does_not_take_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Something listens at the address, but it is not a Ray head."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{listening.getsockname()[1]}")
        monkeypatch.setattr(ray, "is_initialized", lambda: False)

        def refuse(**_: Any) -> None:
            assert os.environ[IMPATIENT] == "1"
            raise ConnectionError("Failed to connect to Ray cluster")

        monkeypatch.setattr(ray, "init", refuse)
        with pytest.raises(UserError, match="ConnectionError: Failed to connect to Ray cluster"), ray_session():
            pytest.fail("it is not connected")
        assert IMPATIENT not in os.environ
