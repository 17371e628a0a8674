"""A cluster whose head is lost, or is cut off and goes on alone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cluster.conftest import HANG, Cluster, measured
from tests.cluster.hosts import Host, until
from tests.cluster.ray_hosts import IN_MEMORY, checkpoint, short_run
from tests.conftest import files_of
from tests.faults.matrix import assert_same, events, losses, recoveries, steps_again

from causalfusion_platform.config.errors import STOPPED
from causalfusion_platform.launch.runs.lock import LOCK_FILE
from causalfusion_platform.storage.fence import LaunchToken
from causalfusion_platform.tracking.journal import Launched

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


def launches(run_dir: Path) -> list[int]:
    """Return the numbers of a run's launches, in order."""
    return [event.launch for event in events(run_dir) if isinstance(event, Launched)]


def test_the_head_is_killed_and_the_same_command_continues(breakable: Cluster, one_host: Path) -> None:
    """With the head go the driver and the GCS. Then the head's host is switched on again, and all of Ray starts."""
    rays, head = breakable.rays, breakable.head
    saved = checkpoint(rays.home, "headless", 256)
    [in_step] = rays.plan({"do": "SIGCONT", "step": 6, "when": str(saved), "pause": HANG})
    first = rays.train(head, head, *short_run("headless", IN_MEMORY), log=head.folder / "headless.log")
    until(in_step.exists, first.said, HANG)
    head.kill()
    killed = time.monotonic()
    assert first.wait(HANG) != 0
    rays.mend(head, *breakable.workers)
    mended = time.monotonic() - killed

    again = rays.train(head, head, *short_run("headless", IN_MEMORY), log=head.folder / "headless-again.log")
    assert again.wait(HANG) == 0, again.said()
    run_dir = rays.home / "runs/headless"
    assert_same(run_dir, one_host)
    assert launches(run_dir) == [1, 2]
    [recovered] = recoveries(run_dir)
    assert recovered.steps <= 2
    measured(
        "the head is killed, the same command continues",
        f"{mended:.0f} s until Ray ran on all hosts again, {recovered.seconds:.0f} s to recover, "
        f"{recovered.steps:.0f} steps again",
    )


@pytest.fixture
def other_head(breakable: Cluster) -> Iterator[Host]:
    """A second head, with the second worker's host."""
    rays, worker = breakable.rays, breakable.workers[1]
    host = rays.host("other-head")
    rays.end_ray(worker)
    rays.start_head(host)
    rays.start_worker(worker, host)
    rays.wait_for_nodes(host, host, worker)
    yield host
    rays.end_ray(host)


def test_a_head_that_is_cut_off_publishes_no_late_checkpoint(
    breakable: Cluster, other_head: Host, tmp_path: Path
) -> None:
    """A head, its driver and a worker are alive on their side of a partition, and reach the shared folder.

    The server of that folder has taken their lock for lost, as one of NFS does: on their side another file is
    mounted over it. The run is continued on the other side, to its end. Then the old step goes on to a checkpoint.
    """
    rays, head, (worker, _) = breakable.rays, breakable.head, breakable.workers
    run_dir, released = rays.home / "runs/split", tmp_path / "released"
    run_dir.mkdir(parents=True)
    lock, lost = run_dir / LOCK_FILE, tmp_path / "lost-lock"
    lock.touch()
    lost.touch()
    head.mount(lost, lock)
    try:
        [in_step] = rays.plan({"do": "SIGCONT", "step": 6, "when": str(released)})
        arguments = short_run("split", IN_MEMORY, workers=1)
        old = rays.train(head, head, *arguments, log=head.folder / "split.log")
        until(in_step.exists, old.said, HANG)
        assert checkpoint(rays.home, "split", 256).exists()
        head.isolate(worker)

        new = rays.train(other_head, other_head, *arguments, log=other_head.folder / "split.log")
        assert new.wait(HANG) == 0, new.said()
        assert old.status is None, "the old one is alive, and waits in its step"
        token = LaunchToken.read(run_dir)
        assert token is not None
        assert (token.launch, token.host) == (2, other_head.name)
        before, told = files_of(run_dir), events(run_dir)

        released.touch()
        asked = time.monotonic()
        assert old.wait(HANG) == STOPPED, old.said()
        seconds = time.monotonic() - asked
    finally:
        head.run("umount", "--lazy", lock)  # after a failure the old driver still holds it open
    assert f"launch 2 has taken run 'split' over: process {token.pid} on {other_head.name}" in old.said()
    assert files_of(run_dir) == before
    assert events(run_dir) == told
    assert launches(run_dir) == [1, 2]
    assert len(losses(run_dir)) == 12, "steps that both trained have one loss, bit for bit"
    measured(
        "the old head is cut off and alive, its late checkpoint is refused",
        f"status {STOPPED} after {seconds:.0f} s, no file changed, {steps_again(run_dir):.0f} steps again",
    )
