"""Folders of local Rays: those of killed drivers are removed at the next start."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from causalfusion_platform.launch.cluster import leftovers
from causalfusion_platform.storage.held import hold


def test_folders_of_drivers_that_are_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "_PARENT", tmp_path)
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    os.close(hold(tmp_path / "cf-ray-killed"))
    running = hold(tmp_path / "cf-ray-running")
    # As earlier versions made them, without a lock.
    for name, driver in (("earlier-killed", ended.pid), ("earlier-running", os.getpid())):
        (tmp_path / f"cf-ray-{name}" / f"session_2026-11-28_10-12-23_112209_{driver}" / "logs").mkdir(parents=True)
    for name in ("starting", "never-started"):
        (tmp_path / f"cf-ray-{name}").mkdir()
    os.utime(tmp_path / "cf-ray-never-started", (0, time.time() - 7200))
    (tmp_path / "other").mkdir()
    with leftovers.ray_folder() as mine:
        names = {path.name for path in tmp_path.iterdir()}
        assert names == {"cf-ray-running", "cf-ray-earlier-running", "cf-ray-starting", "other", mine.name}
        assert mine.stat().st_mode & 0o777 == 0o700
    os.close(running)
    assert not mine.exists()
