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

pytestmark = pytest.mark.cluster

IMAGES = 12_800
SWEEP = [
    "sweep",
    "smoke",
    "name=tiny",
    "sweep.grid={objective.ar_decay: [1.0, 0.9]}",
    "sweep.metric=fd_digits_cnn",
    "sweep.mode=min",
    "sweep.max_concurrent=1",
    f"train.images={IMAGES}",
    "train.checkpoint_every_images=1280",
    f"train.sample_every_images={IMAGES}",
    "train.cpus_per_worker=0.75",
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
    home = laptop.cluster.home
    sent = laptop.jobs("submit", "--no-wait", "--home", str(home), "--job-id", "tiny-1", "--", *SWEEP)
    assert (sent.returncode, sent.stdout) == (0, "tiny-1\n"), sent.stderr
    trials = home / "runs/tiny"
    until(
        lambda: any(trials.glob("*/checkpoints/images-*/checkpoint.json")),
        lambda: laptop.jobs("logs", "tiny-1").stdout,
    )

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
    [first] = [trial for trial in trials.glob("trial-*") if (trial / "run.json").exists()]
    kept = sorted(first.glob("checkpoints/images-*/checkpoint.json"))[-1].parent.name

    resumed = laptop.jobs("resume", "tiny-1", "--job-id", "tiny-2", seconds=600)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    ends = {job["job"]: job["status_name"] for job in listed(laptop)}
    assert (ends["tiny-1"], ends["tiny-2"]) == ("stopped", "finished")
    summaries = [json.loads(file.read_text()) for file in trials.glob("trial-*/summary.json")]
    assert [summary["images_seen"] for summary in summaries] == [IMAGES, IMAGES]
    assert launches(first) == 2, "the trial that was stopped went on"
    measured("jobs stop: a sweep saves its trial", f"{seconds:.0f} s, {kept}")


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
