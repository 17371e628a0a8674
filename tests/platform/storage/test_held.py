"""Folders that belong to processes: those of killed ones are removed, and no others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from causalfusion_platform.storage import held
from causalfusion_platform.storage.atomic import remove_unfinished
from causalfusion_platform.storage.held import held_folder, hold, remove_if_left, remove_temporary

HOLDER = """if True:
    import sys, time
    from pathlib import Path
    from causalfusion_platform.storage.held import hold
    hold(Path(sys.argv[1]))
    print("held", flush=True)
    time.sleep(300)
"""


@pytest.mark.processes
def test_a_folder_is_left_over_once_its_process_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert remove_if_left(folder) is False
        second = hold(folder)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert remove_if_left(folder) is False
    os.close(second)
    assert remove_if_left(folder) is True
    assert not folder.exists()


def test_folders_that_nobody_holds(tmp_path: Path) -> None:
    (tmp_path / "unknown").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "unknown")
    assert remove_if_left(tmp_path / "unknown") is None
    assert remove_if_left(tmp_path / "link") is False
    assert remove_if_left(tmp_path / "nowhere") is False
    assert (tmp_path / "unknown").is_dir()


def test_small_folders_of_killed_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left = tmp_path / f"{held.TEMPORARY}killed"
    os.close(hold(left))
    (left / "thumbnail.webp").write_bytes(b"x")
    (tmp_path / "tmpother").mkdir()
    with held_folder() as mine:
        remove_temporary()
        assert sorted(tmp_path.iterdir()) == sorted([mine, tmp_path / "tmpother"])
    assert list(tmp_path.iterdir()) == [tmp_path / "tmpother"]


def test_files_of_killed_atomic_writes(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    (tmp_path / f".run.json.{ended.pid}").write_bytes(b"half")
    kept = [tmp_path / name for name in (f".run.json.{os.getpid()}", ".lock", "run.json", f"run.json.{ended.pid}")]
    for path in kept:
        path.write_bytes(b"kept")
    remove_unfinished(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(kept)
