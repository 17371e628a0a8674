"""The driver, or Ray's head, is killed; the same command goes on."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from tests.faults.conftest import ENOUGH, EVERY, Plan, launch, long_step, started, until
from tests.faults.matrix import BIT_EXACT, assert_same, events, record, steps_again
from tests.faults.ray_processes import end_ray

pytestmark = [pytest.mark.faults, pytest.mark.ray, pytest.mark.timeout(1200)]


def test_a_killed_driver_and_damaged_ray_state(place: Path, two_workers: Path, plan: Plan, tmp_path: Path) -> None:
    """SIGKILL of the driver takes the Ray that it started with it; then Ray's own state is overwritten."""
    run_dir, log = place / "runs" / "kill-driver", tmp_path / "log"
    [reached] = plan(long_step(place, "kill-driver", 7, EVERY))
    process = started("kill-driver", log, "train.num_workers=2")
    until(reached.exists, process, log)
    family = process.children(recursive=True)
    moment = time.time()
    process.kill()
    process.wait()
    end_ray(family)
    damaged = [file for file in (run_dir / "ray").rglob("*") if file.is_file()]
    for file in damaged:
        file.write_bytes(b"{ damaged")
    launch("kill-driver", "train.num_workers=2")
    assert_same(run_dir, two_workers)
    assert steps_again(run_dir) == 3
    again = next(event for event in events(run_dir) if event.kind == "training" and event.time > moment)
    record(
        "SIGKILL of the driver, and the same command again",
        f"the next launch goes on from the last good checkpoint; {BIT_EXACT}",
        recovery=again.time - moment,
        steps=steps_again(run_dir),
    )
    record(
        "Ray's own state files are damaged",
        "they are never read again: what a run goes on from are its verified manifests",
        saw=f"{len(damaged)} files overwritten",
    )


def test_a_lost_head(place: Path, two_workers: Path, plan: Plan, tmp_path: Path) -> None:
    """SIGKILL of Ray's head (its GCS): the cluster is gone, and with it the driver; the same command goes on."""
    run_dir, log = place / "runs" / "lost-head", tmp_path / "log"
    [reached] = plan(long_step(place, "lost-head", 7, EVERY))
    # Ray's own default is to look for a lost head for a minute.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "5")
        process = started("lost-head", log, "train.num_workers=2", keep="RAY_gcs")
    until(reached.exists, process, log)
    family = process.children(recursive=True)
    [head] = [one for one in family if one.name() == "gcs_server"]
    moment = time.time()
    head.kill()
    status = process.wait(ENOUGH)
    assert status not in (0, 75), log.read_text()
    seconds = time.time() - moment
    end_ray(family)
    launch("lost-head", "train.num_workers=2")
    assert_same(run_dir, two_workers)
    assert steps_again(run_dir) == 3
    record(
        "SIGKILL of Ray's head (GCS)",
        f"the driver ends; the same command goes on, on a new head; {BIT_EXACT}",
        steps=steps_again(run_dir),
        saw=f"the driver ended after {seconds:.0f} s (Ray told to look for it for 5 s, not 60)",
    )
