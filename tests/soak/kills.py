"""Launches of a command, and kills of its processes at random moments."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from tests.conftest import run_environment
from tests.faults.ray_processes import end_ray, title

DRIVER = "driver"
TARGETS = {
    "worker": ("ray::RayTrainWorker", "ray::_RayTrainWorker"),
    "controller": ("ray::TrainController",),
    "trial": ("ray::ImplicitFunc", "ray::trial_process"),
    "generator": ("ray::Generator", "ray::"),
    "task": ("ray::",),
}
"""Kind of a process → beginnings of its title, as Ray gives it."""
_HANG_SECONDS = 900.0


@dataclass
class Kill:
    """SIGKILL to one process of a launch."""

    target: str
    after: float
    """Seconds from the launch. If no such process lives by then, the next one is killed when it appears."""
    draw: random.Random
    done: bool = False

    @classmethod
    def drawn(cls, targets: Sequence[str], seconds: float, draw: random.Random) -> Kill:
        """Return a kill of a random target at a random moment of a launch that takes so long."""
        return cls(draw.choice(list(targets)), draw.uniform(0.1, 0.85) * seconds, draw)

    def attempt(self, driver: psutil.Process) -> None:
        """Kill a process of the kind, if there is one."""
        if self.target == DRIVER:
            driver.kill()
            self.done = True
            return
        beginnings = TARGETS[self.target]
        there = [one for one in _family(driver) if title(one).startswith(beginnings)]
        if there:
            with suppress(psutil.NoSuchProcess):
                self.draw.choice(there).kill()
                self.done = True


@dataclass(frozen=True)
class End:
    """End of a launch."""

    status: int
    seconds: float
    killed: str
    tail: str
    traceback: str

    def __str__(self) -> str:
        return f"{self.killed}status {self.status} after {self.seconds:.0f} s"


def launch(command: Sequence[str], home: Path, kill: Kill | None) -> End:
    """Run a `causalfusion` command to its end, disturbed by a kill. Its Ray is gone afterwards."""
    home.mkdir(parents=True, exist_ok=True)
    started, log, family = time.monotonic(), home / "log.txt", list[psutil.Process]()
    with log.open("w+") as output:
        driver = psutil.Popen(
            [sys.executable, "-m", "causalfusion_platform", *command],
            env=run_environment(CAUSALFUSION_HOME=str(home)),
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        while driver.poll() is None:
            now = time.monotonic() - started
            family = _family(driver) or family
            if kill is not None and not kill.done and now > kill.after:
                kill.attempt(driver)
            if now > _HANG_SECONDS:
                driver.kill()
            time.sleep(0.1)
        end_ray(family)
    said = log.read_text(errors="replace")
    return End(
        status=driver.returncode,
        seconds=time.monotonic() - started,
        killed=f"{kill.target} killed at {kill.after:.1f} s, " if kill is not None and kill.done else "",
        tail=" | ".join(said.strip().splitlines()[-3:])[-300:],
        traceback=said[said.index("Traceback") :][:1500] if "Traceback" in said else "",
    )


def _family(driver: psutil.Process) -> list[psutil.Process]:
    try:
        return list(driver.children(recursive=True))
    except psutil.NoSuchProcess:
        return []
