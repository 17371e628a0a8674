"""The driver, or Ray's head, is killed; the same command goes on."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from tests.faults.conftest import ENOUGH, EVERY, Plan, launch, long_step, started, until
from tests.faults.matrix import assert_same, events, record, recoveries, steps_again
from tests.faults.ray_processes import end_ray

pytestmark = [
    pytest.mark.faults,
    pytest.mark.ray,
    pytest.mark.timeout(1200),
    pytest.mark.usefixtures("ray_cluster"),  # the reference and the last launch start no Ray of their own
]

TWO = "train.num_workers=2"


def test_a_killed_driver_damaged_ray_state_and_a_lost_head(
    place: Path, two_workers: Path, plan: Plan, tmp_path: Path
) -> None:
    """One run over three launches, all by the same command.

    SIGKILL of the driver takes the Ray that it started with it; then Ray's own state is overwritten. In the next
    launch Ray's head (its GCS) is killed: the cluster is gone, and with it the driver.
    """
    name = "ray-lost"
    run_dir = place / "runs" / name
    in_first, in_second = plan(long_step(place, name, 7, EVERY), long_step(place, name, 11, 2 * EVERY))
    process = started(name, tmp_path / "first", TWO)
    until(in_first.exists, process, tmp_path / "first")
    family = process.children(recursive=True)
    moment = time.time()
    process.kill()
    process.wait()
    end_ray(family)
    damaged = [file for file in (run_dir / "ray").rglob("*") if file.is_file()]
    assert damaged
    for file in damaged:
        file.write_bytes(b"{ damaged")

    # Ray's own default is to look for a lost head for a minute.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "5")
        process = started(name, tmp_path / "second", TWO, keep="RAY_gcs")
    until(in_second.exists, process, tmp_path / "second")
    family = process.children(recursive=True)
    [head] = [one for one in family if one.name() == "gcs_server"]
    lost = time.time()
    head.kill()
    status = process.wait(ENOUGH)
    assert status not in (0, 75), (tmp_path / "second").read_text()
    seconds = time.time() - lost
    end_ray(family)

    assert launch(name, TWO).summary["launches"] == 3
    assert_same(run_dir, two_workers)
    after_driver, after_head = recoveries(run_dir)
    assert [after_driver.steps, after_head.steps] == [3, 3]
    assert steps_again(run_dir) == 6
    again = next(event for event in events(run_dir) if event.kind == "training" and event.time > moment)
    record(
        "SIGKILL of the driver, and the same command again",
        "the next launch goes on from the last good checkpoint",
        exact=True,
        recovery=again.time - moment,
        steps=after_driver.steps,
    )
    record(
        "Ray's own state files are damaged",
        "they are never read again. A run goes on from its verified manifests",
        saw=f"{len(damaged)} files overwritten",
    )
    record(
        "SIGKILL of Ray's head (GCS)",
        "the driver ends. The same command goes on, on a new head",
        exact=True,
        steps=after_head.steps,
        saw=f"the driver ended after {seconds:.0f} s (Ray told to look for it for 5 s, not 60)",
    )
