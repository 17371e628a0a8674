"""The hooks before a pod's end, run by a real shell on real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from causalfusion_platform.deploy.kuberay.hooks import drain_node, stop_driver

WAITING = """
import os, signal, sys, time
def end(*_):
    open(sys.argv[-1], "w").write("checkpoint")
    sys.exit(75)
signal.signal(signal.SIGTERM, end)
print("ready", flush=True)
time.sleep(600)
"""


def command(hook: dict[str, Any]) -> list[str]:
    argv: list[str] = hook["preStop"]["exec"]["command"]
    return argv


def test_the_head_s_hook_ends_drivers_with_sigterm_and_waits_for_them(tmp_path: Path) -> None:
    program = tmp_path / "causalfusion"
    program.write_text(WAITING)
    written = tmp_path / "written"
    argv = [sys.executable, str(program), "train", "quickstart", str(written)]
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "causalfusion", "train"])
    driver = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    try:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "ready\n"
        # Other tests may run drivers on this machine: look at these two processes alone.
        script = command(stop_driver(60))[2].replace("/proc/[0-9]*", f"/proc/{driver.pid} /proc/{other.pid}")
        waiting = subprocess.Popen(["/bin/sh", "-c", script])
        assert driver.wait(timeout=60) == 75
        assert waiting.wait(timeout=60) == 0
        assert written.read_text() == "checkpoint"
        assert other.poll() is None
    finally:
        for process in (driver, other):
            process.kill()
            process.wait()


def test_the_worker_s_hook_drains_the_node_and_waits_while_ray_s_workers_work(tmp_path: Path) -> None:
    ray = tmp_path / "ray"
    ray.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
    ray.chmod(0o755)
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    worker = subprocess.Popen(["bash", "-c", "exec -a ray::RayTrainWorker sleep 600"])
    idle = subprocess.Popen(["bash", "-c", "exec -a ray::IDLE sleep 600"])
    try:
        _named(worker, "ray::RayTrainWorker")
        _named(idle, "ray::IDLE")
        ours = f"/proc/{worker.pid}/cmdline /proc/{idle.pid}/cmdline"
        script = command(drain_node(60))[2].replace("/proc/[0-9]*/cmdline", ours)
        hook = subprocess.Popen(["/bin/sh", "-c", script], env=environ)
        with pytest.raises(subprocess.TimeoutExpired):
            hook.wait(timeout=2)
        asked = (tmp_path / "asked").read_text()
        assert asked.startswith("drain-node --reason DRAIN_NODE_REASON_PREEMPTION")
        assert "--deadline-remaining-seconds 50" in asked
        worker.send_signal(signal.SIGTERM)
        worker.wait()
        assert hook.wait(timeout=60) == 0
        assert idle.poll() is None
    finally:
        for process in (worker, idle):
            process.kill()
            process.wait()


def test_the_hooks_leave_ray_time_for_its_own_end() -> None:
    for seconds in (15, 90):
        for hook in (stop_driver(seconds), drain_node(seconds)):
            assert f'[ "$seconds" -lt {seconds - 10} ]' in command(hook)[2]


def _named(process: subprocess.Popen[bytes], name: str) -> None:
    for _ in range(600):
        if Path(f"/proc/{process.pid}/cmdline").read_bytes().startswith(name.encode()):
            return
        time.sleep(0.05)
    raise AssertionError(f"the process is not called {name}")
