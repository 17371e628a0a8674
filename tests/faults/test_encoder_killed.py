"""An encoder that is killed, with SIGKILL, ends with the very files of one that nothing stopped.

Without Ray, it is killed before each thing that it does to its folder. On Ray, it is killed where Ray has a part.
"""

from __future__ import annotations

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
from tests.faults.ray_processes import end_ray, title
from tests.faults.shards import check_finished_shards, files_of
from tests.platform.data.encode.in_process import MAX_PIXELS, encode_without_ray
from tests.platform.data.pictures import faulty_images, photo, saved
from tests.platform.data.sources.makers import write_files
from tests.platform.data.tiny_vaes import new_kl

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1500)]

ITEMS, PER_SHARD = 160, 8
LAYOUT = {"size": 64, "rows_per_shard": PER_SHARD, "rows_per_group": 4, "batch_size": 4}
SHARDS = ITEMS // PER_SHARD
LAUNCH_SECONDS = 600
"""More than any launch takes to where it is killed, on a loaded machine too."""


class Launch:
    """The command in a process of its own."""

    def __init__(self, source: Path, out: Path, vae: Path, log: Path) -> None:
        self.out, self.log = out, log
        self.before = len(self.shards())
        settings = {**LAYOUT, "max_pixels": MAX_PIXELS}
        layout = [f"--{name.replace('_', '-')}={number}" for name, number in settings.items()]
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
        return list(self.out.glob("_encoding/shard-*.json"))

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a moment, or for the end of the process."""
        deadline = time.monotonic() + LAUNCH_SECONDS
        while self.process.poll() is None and not condition():
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.001)

    def kill(self) -> bool:
        """Kill the driver, and see that the Ray it started goes with it; say whether it was still running."""
        if self.process.poll() is not None:
            return False
        started = self.process.children(recursive=True)
        folders = {found[0] for one in started for found in [re.search(r"/tmp/cf-ray-\w+", title(one))] if found}
        self.process.kill()
        self.process.wait()
        left = end_ray(started)
        for folder in folders:  # nobody is left to remove it
            shutil.rmtree(folder, ignore_errors=True)
        assert not left, f"outlived the driver: {left}"
        return True

    def kill_worker(self, pick: random.Random) -> str:
        """Kill one of the processes that decode, encode, write or conduct; return what it was."""
        workers = {
            name: one
            for one in self.process.children(recursive=True)
            for name in [title(one)]
            if re.match(r"ray::(\w*Map|_conduct)", name)
        }
        if not workers:
            return "no worker"
        name = pick.choice(sorted(workers))
        workers[name].kill()
        return name

    def finish(self) -> str:
        """Wait for the end of the process; return what it said."""
        self.until(lambda: False)
        assert self.process.returncode == 0, self.log.read_text()
        return self.log.read_text()


def planned(seconds: float) -> Callable[[Launch], None]:
    """So long after the source was listed, while Ray starts and the autoencoder is opened."""

    def wait(launch: Launch) -> None:
        launch.until((launch.out / "_encoding/plan.json").is_file)
        until = time.monotonic() + seconds
        launch.until(lambda: time.monotonic() >= until)

    return wait


def new_shards(count: int) -> Callable[[Launch], None]:
    """As soon as this launch has made so many: the record of the last one is not there yet."""
    return lambda launch: launch.until(lambda: len(launch.shards()) >= launch.before + count)


def all_but_manifest(launch: Launch) -> None:
    """As soon as every shard is finished."""
    launch.until(lambda: len(launch.records()) == SHARDS)


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


def test_a_kill_before_every_step_without_ray(tmp_path: Path) -> None:
    """Each kill is followed by a launch that ends; one folder is killed until a launch comes to its end."""
    source = write_files(
        tmp_path / "source", {f"a/{name}": image.content for name, image in faulty_images().items()}
    )
    folder = tmp_path / "encoded"
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.encode_process", str(source), str(folder)],
        cwd=ROOT,
        env=run_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    steps, whole = printed["steps"], files_of(folder / "whole")
    assert {"os.rename _manifest.json", "os.rename _faults.csv", "os.rename plan.json"} <= set(steps)
    shards = [name for name in whole if name.endswith(".parquet")]
    assert len(shards) > 3
    assert {f"os.rename {name}" for name in shards} <= set(steps)
    assert sum(step.startswith("os.fsync .shard-") for step in steps) == 2 * len(shards)  # and their records
    assert printed["launches"] > 4
    for out in [*(f"killed-{step}" for step in range(len(steps))), "again"]:
        assert files_of(folder / out) == whole, out


def test_three_kills_and_a_lost_worker_on_ray(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = random.Random(0)
    moments: list[tuple[Callable[[Launch], None], bool]] = [
        (planned(draw.uniform(2, 8)), False),
        (new_shards(draw.randint(1, 4)), True),
        (all_but_manifest, False),
    ]
    new_kl().save_pretrained(tmp_path / "vae")
    out, vae = tmp_path / "killed", tmp_path / "vae"
    for number, (wait, worker_first) in enumerate(moments):
        launch = Launch(source, out, vae, tmp_path / f"{number}.log")
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
    said = Launch(source, out, vae, tmp_path / "last.log").finish()
    assert json.loads(said.splitlines()[-1])["items"] == ITEMS
    encode_without_ray(source, str(vae), tmp_path / "whole", **LAYOUT)  # Ray changes no byte
    assert files_of(out) == files_of(tmp_path / "whole")
