"""How busy the machine is: against the kernel's own files, and MLflow's own monitors."""

from __future__ import annotations

import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

from causalfusion_platform.train.system import System

CPU = torch.device("cpu")


def test_names_and_units_are_those_of_mlflow() -> None:
    system = System(Path("/"), CPU)
    monitors = CPUMonitor(), DiskMonitor(), NetworkMonitor()
    theirs: dict[str, float] = {}
    for monitor in monitors:
        monitor.collect_metrics()
        theirs |= monitor.aggregate_metrics()
    found = system.read()
    assert found.keys() == {f"system/{name}" for name in theirs}
    for name in ("system_memory_usage_megabytes", "disk_available_megabytes", "disk_usage_percentage"):
        assert found[f"system/{name}"] == pytest.approx(theirs[name], rel=0.2)


def test_numbers_are_those_of_the_kernel(tmp_path: Path) -> None:
    found = System(tmp_path, CPU).read()
    disk = os.statvfs(tmp_path)
    assert found["system/disk_available_megabytes"] == pytest.approx(disk.f_bavail * disk.f_frsize / 1e6, rel=0.05)
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    memory = {line[0]: int(line[1]) * 1024 for line in lines}
    share = found["system/system_memory_usage_percentage"] / 100
    used = memory["MemTotal:"] * share
    assert found["system/system_memory_usage_megabytes"] == pytest.approx(used / 1e6, rel=0.01)
    assert 0 < share < 1 - memory["MemFree:"] / memory["MemTotal:"] + 0.05


def test_the_processor_is_averaged_since_the_last_reading(tmp_path: Path) -> None:
    """One thread that computes keeps one of the processors busy; the first reading is an average, too."""

    def readings() -> list[float]:
        system, found = System(tmp_path, CPU), []
        for _ in range(2):
            end = time.monotonic() + 0.3
            while time.monotonic() < end:
                pass
            found.append(system.read()["system/cpu_utilization_percentage"])
        return found

    with ThreadPoolExecutor(1) as pool:  # psutil remembers for each thread: this one has asked nothing yet
        found = pool.submit(readings).result()
    assert min(found) >= 50 / (os.cpu_count() or 1)


def test_the_network_counts_from_the_start(tmp_path: Path) -> None:
    system = System(tmp_path, CPU)
    before = system.read()["system/network_receive_megabytes"]
    assert 0 <= before < 100
    sent = bytes(3_000_000)
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        other, _ = server.accept()
    with client, other:
        thread = threading.Thread(target=client.sendall, args=(sent,))
        thread.start()
        received = 0
        while received < len(sent):
            received += len(other.recv(1 << 20))
        thread.join()
    found = system.read()
    assert found["system/network_receive_megabytes"] >= before + 3
    assert found["system/network_transmit_megabytes"] >= 3


def test_a_disk_that_is_away_is_left_out(tmp_path: Path) -> None:
    found = System(tmp_path / "nowhere", CPU).read()
    assert not [name for name in found if "disk" in name]
    assert "system/cpu_utilization_percentage" in found


@pytest.mark.parametrize("readings", [True, False])
def test_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, readings: bool) -> None:
    """There is none here: the driver's numbers are made up, those of MLflow's own formulae computed by hand."""

    def utilization(index: int) -> int:
        if not readings:
            raise ModuleNotFoundError("nvidia-ml-py does not seem to be installed")
        return 37

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (60_000_000_000, 80_000_000_000))
    monkeypatch.setattr(torch.cuda, "utilization", utilization)
    monkeypatch.setattr(torch.cuda, "power_draw", lambda index: 350_500)
    found = System(tmp_path, torch.device("cuda", 1)).read()
    expected = {
        "system/gpu_1_memory_usage_megabytes": 20_000.0,
        "system/gpu_1_memory_usage_percentage": 25.0,
    }
    if readings:
        expected |= {"system/gpu_1_utilization_percentage": 37, "system/gpu_1_power_usage_watts": 350.5}
    assert {name: value for name, value in found.items() if "gpu" in name} == expected
