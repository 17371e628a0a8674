"""An encoder that is killed again and again, with SIGKILL, ends with the very files of one that nothing stopped."""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from tests.conftest import ROOT, run_environment
from tests.platform.data.pictures import faulty_images, photo, saved
from tests.platform.data.sources.makers import write_files
from tests.platform.data.tiny_vaes import new_kl

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1500)]

ITEMS, PER_SHARD = 320, 8
SHARDS = ITEMS // PER_SHARD
_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
LAUNCH_SECONDS = 240
"""More than any launch takes to where it is killed."""


class Launch:
    """The command in a process of its own."""

    def __init__(self, source: Path, out: Path, vae: Path, log: Path) -> None:
        self.out, self.log = out, log
        self.before = len(self.shards())
        layout = ["--size=64", f"--rows-per-shard={PER_SHARD}", "--rows-per-group=4", "--batch-size=4"]
        command = [sys.executable, "-m", "causalfusion_platform", "data", "encode", str(source), str(out)]
        with log.open("w") as file:
            self.process = psutil.Popen(
                [*command, f"--vae={vae}", *layout, "--json"],
                cwd=ROOT,
                env=run_environment(),
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def shards(self) -> list[Path]:
        """Shards that are there, finished or not."""
        return list(self.out.glob("shard-*.parquet"))

    def records(self) -> list[Path]:
        """Records of finished shards."""
        return list(self.out.glob("encoding/shard-*.json"))

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a moment, or for the end of the process."""
        deadline = time.monotonic() + LAUNCH_SECONDS
        while self.process.poll() is None and not condition():
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.001)

    def kill(self) -> bool:
        """Kill the driver, and see that the Ray it started goes with it; say whether it was still running.

        Ray's agents, which only report, may wait a minute or more for a server that is gone. They are ended here.
        """
        if self.process.poll() is not None:
            return False
        started = self.process.children(recursive=True)
        folders = {found[0] for one in started for found in [re.search(r"/tmp/cf-ray-\w+", _title(one))] if found}
        self.process.kill()
        self.process.wait()
        deadline = time.monotonic() + 30
        while (left := [one for one in started if _lives(one)]) and time.monotonic() < deadline:
            time.sleep(0.05)
        workers = [one for one in left if not _title(one).startswith(_AGENTS)]
        for one in left:
            one.kill()
        for folder in folders:  # nobody is left to remove it
            shutil.rmtree(folder, ignore_errors=True)
        assert not workers, f"outlived the driver: {workers}"
        return True

    def kill_worker(self, pick: random.Random) -> str:
        """Kill one of the processes that decode, encode, write or conduct; return what it was."""
        workers = {
            title: one
            for one in self.process.children(recursive=True)
            for title in [_title(one)]
            if re.match(r"ray::(\w*Map|_conduct)", title)
        }
        if not workers:
            return "no worker"
        title = pick.choice(sorted(workers))
        workers[title].kill()
        return title

    def finish(self) -> str:
        """Wait for the end of the process; return what it said."""
        self.until(lambda: False)
        assert self.process.returncode == 0, self.log.read_text()
        return self.log.read_text()


def _lives(process: psutil.Process) -> bool:
    """Not so of a zombie: where the first process of a container reaps none, they stay."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()).strip()
    except psutil.Error:
        return ""


def start(seconds: float) -> Callable[[Launch], None]:
    """So long after the launch."""
    return lambda launch: launch.until(lambda: time.time() >= launch.process.create_time() + seconds)


def planned(seconds: float) -> Callable[[Launch], None]:
    """So long after the source was listed, while Ray starts and the autoencoder is opened."""

    def wait(launch: Launch) -> None:
        launch.until((launch.out / "encoding/plan.json").is_file)
        until = time.monotonic() + seconds
        launch.until(lambda: time.monotonic() >= until)

    return wait


def new_shards(count: int) -> Callable[[Launch], None]:
    """As soon as this launch has made so many: the record of the last one is not there yet."""
    return lambda launch: launch.until(lambda: len(launch.shards()) >= launch.before + count)


def half_written(launch: Launch) -> None:
    """While a shard is written."""
    launch.until(lambda: any(launch.out.glob(".shard-*")))


def all_but_manifest(launch: Launch) -> None:
    """As soon as every shard is finished."""
    launch.until(lambda: len(launch.records()) == SHARDS)


def check_finished_shards(out: Path) -> None:
    """Every record is whole, and so is its shard; the manifest is not there before all of them are."""
    records = list(out.glob("encoding/shard-*.json"))
    for path in records:
        shard = json.loads(path.read_bytes())["shard"]
        content = (out / shard["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == shard["sha256"]
    assert len(records) == SHARDS or not (out / "manifest.json").exists()


def files_of(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder, but the lock."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != "lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Crops of photographs in two classes, and every kind of faulty file among them."""
    whole = {name: photo(400, 240, name) for name in ("china", "flower")}
    faulty = {f"china/{name}": image.content for name, image in faulty_images().items()}
    crops = {}
    for number in range(ITEMS - len(faulty)):
        name = ("china", "flower")[number % 2]
        crops[f"{name}/{number:03d}.jpg"] = saved(whole[name][number % 80 :, number:][:120, :120], "JPEG")
    return write_files(tmp_path / "source", {**faulty, **crops})


def test_ten_kills(tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw = random.Random(0)
    moments: list[tuple[Callable[[Launch], None], bool]] = [
        (start(draw.uniform(0.2, 2)), False),
        (start(draw.uniform(2, 6)), False),
        (planned(draw.uniform(0, 2)), False),
        (planned(draw.uniform(2, 8)), False),
        (new_shards(1), False),
        (half_written, False),
        (new_shards(draw.randint(1, 4)), True),
        (new_shards(draw.randint(1, 4)), False),
        (new_shards(draw.randint(1, 4)), True),
        (all_but_manifest, False),
    ]
    new_kl().save_pretrained(tmp_path / "vae")
    out = tmp_path / "killed"
    for number, (wait, worker_first) in enumerate(moments):
        launch = Launch(source, out, tmp_path / "vae", tmp_path / f"{number}.log")
        try:
            wait(launch)
            victim = "driver"
            if worker_first:
                victim = f"{launch.kill_worker(draw)}, then driver"
                now = len(launch.shards())
                launch.until(lambda launch=launch, now=now: len(launch.shards()) > now)  # type: ignore[misc]
        finally:
            killed = launch.kill()
        assert killed or number == len(moments) - 1, launch.log.read_text()  # a lost worker is replaced
        check_finished_shards(out)
        with capsys.disabled():
            print(
                f"\nkill {number}: {victim if killed else 'had ended'}; "
                f"{len(launch.records())} of {SHARDS} shards finished",
                end="",
                flush=True,
            )
    said = Launch(source, out, tmp_path / "vae", tmp_path / "last.log").finish()
    Launch(source, tmp_path / "whole", tmp_path / "vae", tmp_path / "whole.log").finish()
    assert json.loads(said.splitlines()[-1])["items"] == ITEMS
    assert files_of(out) == files_of(tmp_path / "whole")
