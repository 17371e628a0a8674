"""The rendered sbatch script as it is, on a Slurm of two nodes that are really apart."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.numpy import load_file
from tests.cluster.conftest import measured
from tests.cluster.hosts import Switch, until
from tests.cluster.ray_hosts import IN_MEMORY, INJECTED, RAY
from tests.cluster.slurm import Slurm, assert_no_fault, slurm, why_no_slurm
from tests.conftest import ROOT

pytestmark = pytest.mark.cluster

_LONG = 400
"""Seconds that only a hang takes, on a loaded machine too."""


@pytest.fixture(scope="module")
def here(hosts: Switch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A Slurm of the tests' own."""
    reason = why_no_slurm()
    if reason is not None:
        pytest.skip(reason)
    with slurm(hosts, tmp_path_factory.mktemp("slurm") / "slurm") as made:
        yield made


def overrides(name: str, *more: str) -> tuple[str, ...]:
    """Return the arguments of a training of eight steps on both nodes, with a checkpoint after four."""
    return (
        "smoke",
        f"name={name}",
        "train.num_workers=2",
        "train.cpus_per_worker=0.75",
        "train.images=512",
        "train.checkpoint_every_images=256",
        "train.log_every_images=64",
        "train.sample_every_images=512",
        "train.precision=fp32",
        "evaluation.score=false",
        IN_MEMORY,
        *more,
    )


def cluster_file(here: Slurm, home: Path, plan: Path) -> Path:
    """Write the cluster file of this Slurm."""
    path = home / "slurm.yaml"
    variables = {
        "PATH": here.path,
        "PYTHONPATH": f"{INJECTED}:{ROOT / 'platform'}:{ROOT / 'models'}",
        "CAUSALFUSION_TEST_FAULTS": str(plan),
        "RAY_TMPDIR": "/tmp/ray",  # of each host's own
        "SLURM_CONF": str(here.configuration),
    }
    tree: dict[str, Any] = {
        "target": "slurm",
        "owner": "ada",
        "home": str(home),
        "storage": {"kind": "nfs", "path": str(home)},
        "groups": {"cpu": {"cpus": 1, "memory_gib": 1, "max_nodes": 2}},
        "deadlines": {"pending_seconds": 300, "run_seconds": 1800, "grace_seconds": 30},
        "slurm": {"setup": [f"export {name}={value}" for name, value in variables.items()] + [f"cd {ROOT}"]},
    }
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def apply(here: Slurm, home: Path, *arguments: str) -> str:
    """Hand a command to Slurm by `causalfusion cluster apply`, and return the job's number."""
    program = [sys.executable, "-m", "causalfusion_platform", "cluster", "apply"]
    said = here.run(*program, home / "slurm.yaml", "--yes", "--", "train", *arguments, home=home)
    found = re.search(r"Submitted batch job (\d+)", said)
    assert found is not None, said
    return found[1]


def events(home: Path, name: str) -> list[dict[str, Any]]:
    """Return the events of a run so far."""
    path = home / "runs" / name / "journal.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def log(home: Path) -> str:
    """Return what all jobs have written."""
    return "\n".join(path.read_text(errors="replace") for path in sorted((home / "slurm").glob("*.log")))


def trace(home: Path, name: str) -> dict[int, float]:
    """Return the loss of each optimizer step, by images seen."""
    found: dict[int, float] = {}
    for event in events(home, name):
        if event["kind"] == "metrics" and "train/loss" in event["values"]:
            found[event["step"]] = event["values"]["train/loss"]
    return found


def weights(home: Path, name: str) -> dict[str, Any]:
    """Return the last weights of a run."""
    summary = json.loads((home / "runs" / name / "summary.json").read_text())
    [file] = Path(summary["weights_path"]).glob("*.safetensors")
    return load_file(file)


def test_a_job_ends_at_a_signal_with_a_checkpoint_is_queued_again_and_continues_bit_for_bit(
    here: Slurm, tmp_path: Path
) -> None:
    home, plan = tmp_path / "home", tmp_path / "plan.json"
    home.mkdir()
    file = cluster_file(here, home, plan)
    foreign_log = tmp_path / "foreign.log"
    node = here.nodes[0]
    foreign = node.start(
        RAY,
        "start",
        "--head",
        "--block",
        "--port=6399",
        "--num-cpus=0",
        "--temp-dir=/tmp/ray/foreign",
        "--include-dashboard=false",
        "--object-store-memory=100000000",
        log=foreign_log,
        RAY_AUTH_MODE="disabled",
    )
    until(lambda: "Ray runtime started" in foreign.said(), foreign.said)

    # Undisturbed first: the shards that it prepares are there for both.
    first = apply(here, home, *overrides("undisturbed", "data.prepare=true"))
    assert_no_fault(home / "clusters" / "ada-undisturbed" / "job.sbatch")
    until(lambda: here.state(first) not in ("PENDING", "RUNNING", "COMPLETING"), lambda: log(home), _LONG)
    assert here.state(first) == "COMPLETED", log(home)

    # A step that takes long, until its process hears of the end.
    plan.write_text(
        json.dumps([{"id": "slow", "do": "SIGCONT", "rank": 0, "step": 5, "pause": 120, "until_told": True}])
    )
    job = apply(here, home, *overrides("stopped"))
    reached = Path(f"{plan}.slow.5")
    until(reached.exists, lambda: log(home), _LONG)
    token = next(home.glob(".slurm-*/token"))
    assert (token.stat().st_mode & 0o777, token.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    secret = token.read_text()
    asked = time.monotonic()
    here.run("scancel", "--batch", "--signal=USR1", job)
    until(lambda: any(event["kind"] == "ended" for event in events(home, "stopped")), lambda: log(home), _LONG)
    stopped = time.monotonic() - asked
    until((home / "runs" / "stopped" / "summary.json").exists, lambda: log(home), _LONG)
    continued = time.monotonic() - asked
    until(lambda: here.state(job) == "COMPLETED", lambda: log(home), _LONG)

    found = events(home, "stopped")
    assert [event["launch"] for event in found if event["kind"] == "launched"] == [1, 2]
    assert [event["how"] for event in found if event["kind"] == "ended"] == ["stopped", "finished"]
    assert trace(home, "stopped") == trace(home, "undisturbed")
    mine, theirs = weights(home, "stopped"), weights(home, "undisturbed")
    assert mine.keys() == theirs.keys()
    assert all((mine[key] == theirs[key]).all() for key in mine)

    assert "queued again" in log(home)
    for text in (log(home), (home / "runs/stopped/journal.jsonl").read_text(), file.read_text()):
        assert secret not in text
    assert list(home.glob(".slurm-*")) == []
    assert foreign.status is None, foreign.said()
    node.run(RAY, "status", "--address", f"{node.address}:6399", RAY_AUTH_MODE="disabled")
    for host in here.nodes:
        assert not [name for name in host.run("ls", "/tmp/ray").stdout.split() if name.startswith("causalfusion-")]
    foreign.end()
    measured("Slurm: the signal to the checkpoint", f"{stopped:.0f} s, no step lost")
    measured("Slurm: the signal to the end of the run in its new job", f"{continued:.0f} s")


def test_a_wrong_argument_is_not_queued_again(here: Slurm, tmp_path: Path) -> None:
    """Shards are missing, which nothing but the job itself can see."""
    home = tmp_path / "home"
    home.mkdir()
    cluster_file(here, home, tmp_path / "plan.json")
    job = apply(here, home, *overrides("wrong", "data.prepare=false"))
    until(lambda: here.state(job) not in ("PENDING", "RUNNING", "COMPLETING"), lambda: log(home), _LONG)
    assert here.state(job) == "FAILED", log(home)
    assert "ExitCode=2:0" in here.run("scontrol", "show", "job", job)
    assert "Restarts=0" in here.run("scontrol", "show", "job", job)
    assert "not started again" in log(home)
