"""Workers, their controller and their numbers go wrong on a real Ray, and the run goes on to the very same end."""

from __future__ import annotations

import math
import threading
import time
from pathlib import Path

import psutil
import pytest
from tests.faults.conftest import EVERY, Plan, checkpoint, launch, long_step, sigterm
from tests.faults.matrix import (
    BATCH,
    assert_same,
    events,
    largest_difference,
    losses,
    losses_of,
    record,
    recoveries,
    weights,
)

from causalfusion_platform.launch.runs.exit_status import GaveUp, StoppedRun
from causalfusion_platform.tracking.journal import Incident, Resharded, StepSkipped

pytestmark = [
    pytest.mark.faults,
    pytest.mark.ray,
    pytest.mark.timeout(1200),
    pytest.mark.usefixtures("ray_cluster"),
]

TWO = "train.num_workers=2"
GOES_ON = "the run goes on by itself"


def incidents(run_dir: Path) -> list[Incident]:
    return [event for event in events(run_dir) if isinstance(event, Incident)]


def test_a_killed_worker_and_a_killed_controller_are_replaced(place: Path, two_workers: Path, plan: Plan) -> None:
    """One run, two faults, each at the last step before a checkpoint and with another checkpoint to go back to."""
    name = "killed"
    kill_worker = {"do": "SIGKILL", "rank": 1, "step": 7, "when": checkpoint(place, name, EVERY)}
    _, reached = plan(kill_worker, long_step(place, name, 11, 2 * EVERY))

    def kill() -> None:
        while not reached.exists():
            time.sleep(0.005)
        ours = psutil.Process().children(recursive=True)
        [controller] = [one for one in ours if "TrainController" in " ".join(one.cmdline())]
        controller.kill()

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    run_dir = Path(launch(name, TWO).summary["run_dir"])
    thread.join()
    assert_same(run_dir, two_workers)
    assert [incident.cause for incident in incidents(run_dir)] == ["worker", "controller"]
    after_worker, after_controller = recoveries(run_dir)
    assert [after_worker.steps, after_controller.steps] == [3, 3]
    for fault, recovery in (
        ("SIGKILL of a worker in the middle of a step", after_worker),
        ("SIGKILL of Ray Train's controller", after_controller),
    ):
        record(fault, GOES_ON, exact=True, recovery=recovery.seconds, steps=recovery.steps)


def test_a_stopped_rank_is_found_and_replaced(place: Path, two_workers: Path, plan: Plan) -> None:
    """SIGSTOP: the process is there, and does nothing. Its peer waits for it in a collective.

    It has a run of its own: with so short a limit, a killed worker or controller can count as a hang as well.
    """
    said: list[str] = []
    plan({"do": "SIGSTOP", "rank": 1, "step": 7, "when": checkpoint(place, "hang", EVERY)})
    run_dir = Path(launch("hang", TWO, "supervision.hang_seconds=12", said=said).summary["run_dir"])
    assert_same(run_dir, two_workers)
    [incident] = incidents(run_dir)
    assert incident.cause == "hang"
    assert "rank 1" in incident.detail
    assert any(line.startswith("hang: ") for line in said)
    [stacks] = (run_dir / "hangs").iterdir()
    assert "train_step" in (stacks / "rank-00000.txt").read_text()  # where the other rank waits
    assert "State:\tT (stopped)" in (stacks / "rank-00001.status.txt").read_text()
    [recovery] = recoveries(run_dir)
    record(
        "SIGSTOP of a rank (hang, limit set to 12 s)",
        f"stacks of all ranks are written, the group is replaced, and {GOES_ON}",
        exact=True,
        recovery=recovery.seconds,
        steps=recovery.steps,
        saw="stopped rank named, with its state",
    )


def test_nan_is_skipped_by_all_ranks_and_rolled_back_if_it_stays(
    place: Path, two_workers: Path, plan: Plan
) -> None:
    """One NaN step, then three more: with the last, one more than may be skipped.

    The second time the order of the data is another one.
    """
    once, stays = 2, [5, 6, 7]
    plan(*({"do": "nan", "rank": 1, "step": step} for step in (once, *stays)))
    run_dir = Path(launch("one-nan-then-more", TWO).summary["run_dir"])
    [incident] = incidents(run_dir)
    assert incident.cause == "diverged"
    skipped = [event for event in events(run_dir) if isinstance(event, StepSkipped)]
    assert [event.images for event in skipped] == [step * BATCH for step in (once, *stays)]
    assert {event.attempt for event in skipped} == {1}
    reference = losses(two_workers)
    first, again = losses_of(run_dir, attempt=1), losses_of(run_dir, attempt=2)
    assert [images for images in first if first[images] != reference[images]] == [
        images for images in first if images > once * BATCH
    ]
    # It went on after the one step, and back to the checkpoint in between.
    assert [images for images in first if math.isfinite(first[images])] == [
        (step + 1) * BATCH for step in range(stays[0]) if step != once
    ]
    assert list(again) == list(range(EVERY + BATCH, 16 * BATCH + 1, BATCH))
    # From the very same weights: the rows are others.
    assert again[EVERY + BATCH] != first[EVERY + BATCH]
    assert all(again[images] != reference[images] for images in again)
    assert all(bool(tensor.isfinite().all()) for tensor in weights(run_dir).values())
    promise = "the update is skipped on all ranks alike, and the run goes on"
    record("NaN at one rank, one step", promise, steps=0, saw="1 update skipped")
    [recovery] = recoveries(run_dir)
    record(
        "NaN that does not go away",
        "after 3 skipped updates the run goes back to its last good checkpoint and takes another order of the data",
        recovery=recovery.seconds,
        steps=recovery.steps,
    )


def test_nan_at_every_step_ends_the_run(place: Path, plan: Plan) -> None:
    """What ranks agree on is in the tests above; here one process is enough."""
    plan({"do": "nan", "rank": 0, "steps": list(range(16)), "again": True})
    with pytest.raises(GaveUp, match=r"(?s)diverged 2 times.*optim\.base_lr"):
        launch("nan-for-ever", "supervision.max_rollbacks=1", local=True)
    assert not list((place / "runs" / "nan-for-ever" / "checkpoints").glob("images-*"))  # nothing bad is kept
    record(
        "NaN at every step",
        "the run stops with its diagnosis after the allowed roll-backs, and no checkpoint of bad weights is kept",
        saw="stopped after 2 attempts (1 roll-back allowed)",
    )


def test_world_sizes_change_and_sigterm_stops_with_a_checkpoint(place: Path, two_workers: Path, plan: Plan) -> None:
    """2 workers, SIGTERM, 1 without Ray, SIGTERM, 2 workers: each launch begins where the one before stopped."""
    plan(sigterm(place, "elastic", 5, EVERY))
    with pytest.raises(StoppedRun, match="the same command continues it"):
        launch("elastic", TWO)
    run_dir = place / "runs" / "elastic"
    [first] = [event for event in events(run_dir) if event.kind == "checkpoint"][-1:]
    asked = [event for event in events(run_dir) if event.kind == "progress"][-1]
    assert first.images == asked.images  # a checkpoint of the very last step
    plan({}, sigterm(place, "elastic", 13, 3 * EVERY))
    with pytest.raises(StoppedRun):
        launch("elastic", local=True)
    launch("elastic", TWO)
    resharded = [(event.old, event.new) for event in events(run_dir) if isinstance(event, Resharded)]
    two, one = "2 workers, ZeRO 1", "1 workers, ZeRO 1"
    assert resharded == [(two, one), (one, two)]
    difference = largest_difference(run_dir, two_workers)
    assert 0 < difference < 2e-4
    record(
        "SIGTERM (2 workers → 1 → 2 over three launches)",
        "a checkpoint of the last step, exit status 75. The next launch, with any number of workers, loses nothing",
        steps=0,
        saw=f"largest relative difference of the loss {difference:.1e}",
    )


def test_a_worker_that_dies_every_time_ends_the_run(place: Path, ray_cluster: None, plan: Plan) -> None:
    """Trying for ever would cost a cluster for nothing."""
    plan({"do": "SIGKILL", "rank": 0, "step": 2, "again": True})
    with pytest.raises(GaveUp, match=r"(?s)2 faults in a row without a new checkpoint.*attempt 2.*worker: "):
        launch("dies", "supervision.max_failures_without_progress=2")
    assert [incident.cause for incident in incidents(place / "runs" / "dies")] == ["worker", "worker"]
    record(
        "a worker dies at the same step each time",
        "the launch ends after the allowed failures without progress, with its history and exit status 3",
        saw="2 attempts allowed, 2 made",
    )
