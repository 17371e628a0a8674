"""Training on hosts that are really apart: the same numbers as on one, and a run that hosts are taken from."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from tests.cluster.conftest import HANG, Cluster, measured
from tests.cluster.hosts import until
from tests.cluster.ray_hosts import IN_MEMORY, checkpoint, short_run
from tests.faults.matrix import assert_same, events, largest_difference, recoveries

from causalfusion_platform.config.errors import WRONG
from causalfusion_platform.tracking.journal import AttemptStarted

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


def test_two_hosts_train_as_one_does(cluster: Cluster, one_host: Path) -> None:
    """Sent from the laptop with the checkout, to workers on hosts whose names resolve to 127.0.1.1."""
    began = time.monotonic()
    sent = cluster.rays.submit(
        cluster.laptop, cluster.head, "train", *short_run("across"), log=cluster.laptop.folder / "across.log"
    )
    assert sent.wait(HANG) == 0, sent.said()
    measured("submit from the laptop to two hosts, to its end", f"{time.monotonic() - began:.0f} s")
    run_dir = cluster.home / "runs/across"
    assert_same(run_dir, one_host)
    assert [recovery.causes for recovery in recoveries(run_dir)] == []


def test_a_home_that_one_host_does_not_share(cluster: Cluster, tmp_path: Path) -> None:
    """The host has a folder of its own at that path. It is named before anything is trained."""
    rays, head, (_, host) = cluster.rays, cluster.head, cluster.workers
    host.mount(tmp_path, rays.home)
    try:
        began = time.monotonic()
        run = rays.train(head, head, *short_run("apart"), log=head.folder / "apart.log")
        status = run.wait(HANG)
        measured("a home that one host does not share is refused", f"{time.monotonic() - began:.0f} s")
    finally:
        host.run("umount", rays.home)
    assert status == WRONG, run.said()
    assert f"{host.name} ({host.address})" in run.said()
    assert cluster.workers[0].address not in run.said()
    assert not (rays.home / "runs/apart/checkpoints").exists()


def test_a_host_is_cut_off_and_comes_back_over_a_slow_link(
    breakable: Cluster, one_host: Path, tmp_path: Path
) -> None:
    """A host whose link is cut is lost, and the run goes on with one worker. With the host two train again."""
    rays, head, (_, host) = breakable.rays, breakable.head, breakable.workers
    back = tmp_path / "back"
    in_step, _ = rays.plan(
        {"do": "SIGCONT", "step": 6, "when": str(checkpoint(rays.home, "cut", 256)), "pause": HANG},
        {"do": "SIGKILL", "step": 10, "when": str(back)},
    )
    arguments = short_run("cut", IN_MEMORY, "supervision.min_workers=1", "supervision.resource_seconds=3")
    run = rays.train(head, head, *arguments, log=head.folder / "cut.log")
    until(in_step.exists, run.said, HANG)
    host.cut()
    cut = time.monotonic()
    until(lambda: rays.nodes(head)[host.address] == "DEAD", run.said, HANG)
    noticed = time.monotonic() - cut
    until(lambda: "going on with 1 of 2 workers" in run.said(), run.said, HANG)
    until(checkpoint(rays.home, "cut", 512).exists, run.said, HANG)
    host.delay(0.1)
    rays.mend(head, *breakable.workers, keep_delays=True)
    back.touch()
    assert run.wait(HANG) == 0, run.said()
    run_dir = rays.home / "runs/cut"
    workers = [event.workers for event in events(run_dir) if isinstance(event, AttemptStarted)]
    assert workers == [2, 1, 2]
    difference = largest_difference(run_dir, one_host)
    assert 0 < difference < 2e-4
    lost, returned = recoveries(run_dir)
    assert set(lost.causes) <= {"node", "worker"}
    measured(
        "the link of a host is cut, one worker goes on",
        f"noticed after {noticed:.0f} s, {lost.seconds:.0f} s to recover, {lost.steps:.0f} steps again",
    )
    measured(
        "the host is back behind 200 ms, two workers train again",
        f"{returned.seconds:.0f} s to recover, {returned.steps:.0f} steps again, loss within {difference:.0e}",
    )
