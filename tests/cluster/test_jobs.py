"""A sweep through `causalfusion jobs`, from a laptop that shares nothing with the cluster but a network."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cluster.conftest import Cluster, measured
from tests.cluster.hosts import until
from tests.cluster.ray_hosts import IN_MEMORY, checkpoint

pytestmark = pytest.mark.cluster

IMAGES = 768
SWEEP = [
    "sweep",
    "smoke",
    "name=tiny",
    "sweep.grid={objective.ar_decay: [1.0, 0.9]}",
    "sweep.metric=images_per_second",
    "sweep.mode=max",
    "sweep.max_concurrent=1",
    "evaluation.score=false",
    f"train.images={IMAGES}",
    "train.checkpoint_every_images=256",
    f"train.sample_every_images={IMAGES}",
    "train.cpus_per_worker=0.75",
    IN_MEMORY,
]


class Laptop:
    """Types `causalfusion jobs` on the laptop."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.address = f"http://{cluster.head.address}:8265"

    def jobs(
        self, verb: str, *words: str, user: str = "anna", seconds: float = 300
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "causalfusion_platform", "jobs", verb, "--address", self.address, *words]
        return self.cluster.laptop.run(*command, seconds=seconds, check=False, CAUSALFUSION_USER=user)


@pytest.fixture(scope="module")
def laptop(cluster: Cluster) -> Iterator[Laptop]:
    found = Laptop(cluster)
    yield found
    for job in json.loads(found.jobs("list", "--json").stdout)["jobs"]:
        if job["status"] is None:
            found.jobs("stop", job["job"], "--anyway")


def launches(trial: Path) -> int:
    return int(json.loads((trial / "run.json").read_text())["launches"])


def test_a_sweep_is_submitted_listed_stopped_and_resumed(laptop: Laptop) -> None:
    rays, home = laptop.cluster.rays, laptop.cluster.home
    trials = home / "runs/tiny"
    first, second = trials / "ar_decay-1.0", trials / "ar_decay-0.9"
    saved = checkpoint(home, "tiny/ar_decay-1.0", 256)
    # A step after the first checkpoint takes long, so that the stop comes in the middle of a trial.
    [paused] = rays.plan({"do": "SIGCONT", "step": 7, "when": str(saved), "pause": 500, "until_told": True})
    # Nothing but the command line is sent: the nodes have the program, and find the faults that are planned.
    folder = laptop.cluster.laptop.folder / "sent"
    folder.mkdir()
    (folder / "README").write_text("nothing else\n")
    where = ["--working-dir", str(folder), "--home", str(home)]
    sent = laptop.jobs("submit", "--no-wait", *where, "--job-id", "tiny-1", "--env", "GIVEN=1", "--", *SWEEP)
    assert (sent.returncode, sent.stdout) == (0, "tiny-1\n"), sent.stderr
    until(paused.exists, lambda: laptop.jobs("logs", "tiny-1").stdout, 600)

    [job] = [job for job in listed(laptop) if job["job"] == "tiny-1"]
    assert (job["state"], job["user"], job["run"]) == ("running", "anna", "tiny")
    assert "sweep tiny" in laptop.jobs("logs", "tiny-1").stdout
    table = laptop.jobs("list").stdout.splitlines()
    assert any(line.startswith("tiny-1 ") and "running" in line for line in table)
    assert max(map(len, table)) <= 80
    again = laptop.jobs("resume", "tiny-1")
    assert (again.returncode, "it can be resumed when it has ended" in again.stderr) == (2, True)
    others = laptop.jobs("stop", "tiny-1", user="ben")
    assert (others.returncode, "is of user 'anna'" in others.stderr) == (2, True)

    begun = time.monotonic()
    stopped = laptop.jobs("stop", "tiny-1")
    seconds = time.monotonic() - begun
    assert stopped.returncode == 0, stopped.stderr
    assert "continue later (75)" in stopped.stderr, stopped.stderr
    [job] = [job for job in listed(laptop) if job["job"] == "tiny-1"]
    assert (job["state"], job["status_name"]) == ("ended", "stopped")
    assert saved.is_dir()
    rays.plan()

    resumed = laptop.jobs("resume", "tiny-1", "--job-id", "tiny-2", seconds=600)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    ends = {job["job"]: job["status_name"] for job in listed(laptop)}
    assert (ends["tiny-1"], ends["tiny-2"]) == ("stopped", "finished")
    summaries = [json.loads((trial / "summary.json").read_text()) for trial in (first, second)]
    assert [summary["images_seen"] for summary in summaries] == [IMAGES, IMAGES]
    assert launches(first) == 2, "the trial that was stopped went on"
    measured("jobs stop in the middle of a sweep's trial", f"status 75 after {seconds:.0f} s")


def listed(laptop: Laptop) -> list[dict[str, object]]:
    jobs: list[dict[str, object]] = json.loads(laptop.jobs("list", "--json", "--all").stdout)["jobs"]
    return jobs


def test_what_is_wrong_is_told_in_one_line(laptop: Laptop) -> None:
    unknown = laptop.jobs("logs", "tiny-7")
    assert (unknown.returncode, "did you mean tiny-" in unknown.stderr) == (2, True)
    secret = laptop.jobs("submit", "--env", "HF_TOKEN=geheim", "--", "config", "show", "smoke")
    assert (secret.returncode, "geheim" in secret.stdout + secret.stderr) == (2, False)
    nowhere = laptop.cluster.workers[0].address
    begun = time.monotonic()
    gone = laptop.jobs("list", "--address", f"http://{nowhere}:9")
    assert gone.returncode == 0, "one of two clusters answers"
    assert f"does not answer: no Ray head answers at http://{nowhere}:9" in gone.stdout
    measured("jobs list: a cluster that does not answer", f"{time.monotonic() - begun:.1f} s")
