"""A cluster loses a node that trains: abruptly, and with a notice. The nodes are raylets on one machine."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import ROOT, run_environment
from tests.faults.conftest import ENOUGH, EVERY, Plan, long_step
from tests.faults.matrix import (
    assert_same,
    largest_difference,
    record,
    recoveries,
)

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1200)]


class Nodes:
    """`node_process`, which takes a node away from one run after the other."""

    def __init__(self, place: Path, log: Path) -> None:
        self.place, self.log = place, log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.node_process", str(place)],
                cwd=ROOT,
                env=run_environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
            )

    def train(self, name: str, nodes: int, *losses: tuple[Path, str]) -> dict[str, Any]:
        """Train to the end, and lose a node at each of these moments; return what was said, and the journal."""
        assert self.process.stdin is not None and self.process.stdout is not None
        order = {"name": name, "nodes": nodes, "losses": [(str(moment), how) for moment, how in losses]}
        self.process.stdin.write(f"{json.dumps(order)}\n")
        self.process.stdin.flush()
        line = ""
        while not line.startswith("{"):  # Ray says things, too
            line = self.process.stdout.readline()
            assert line, self.log.read_text()[-4000:]
        printed: dict[str, Any] = json.loads(line)
        return printed


@pytest.fixture(scope="module")
def nodes(place: Path, plan_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """A cluster beside the other tests' Ray."""
    cluster = Nodes(place, tmp_path_factory.mktemp("nodes") / "log")
    try:
        yield cluster
        assert cluster.process.stdin is not None
        cluster.process.stdin.close()
        assert cluster.process.wait(ENOUGH) == 0, cluster.log.read_text()[-4000:]
    finally:
        cluster.process.kill()


def test_an_abrupt_loss_of_a_node_and_one_with_notice(
    place: Path, nodes: Nodes, two_workers: Path, plan: Plan
) -> None:
    """One run on four nodes loses one without a word, and later another that is drained."""
    name = "node-lost"
    lost, drained = plan(long_step(place, name, 7, EVERY), long_step(place, name, 11, 2 * EVERY, until_told=True))
    printed = nodes.train(name, 4, (lost, "abrupt"), (drained, "drained"))
    run_dir = place / "runs" / name
    assert_same(run_dir, two_workers)
    assert any("being taken back" in line for line in printed["said"])
    # On a busy machine Ray may count further nodes as lost, also after the notice.
    after_loss, *after_more = recoveries(run_dir)
    assert set(after_loss.causes) <= {"node", "worker"}
    [after_drain] = [recovery for recovery in after_more if "preempted" in recovery.causes]
    assert after_drain.steps == 0
    record(
        "a node that trains is lost (its processes killed)",
        "its workers start on other nodes",
        exact=True,
        recovery=after_loss.seconds,
        steps=after_loss.steps,
    )
    record(
        "a node is drained because of preemption",
        "a checkpoint of the last step before the node goes, then the run goes on elsewhere",
        exact=True,
        recovery=after_drain.seconds,
        steps=after_drain.steps,
    )


def test_a_lost_node_that_nothing_replaces(place: Path, nodes: Nodes, two_workers: Path, plan: Plan) -> None:
    """There is room for one worker of two: the checkpoint is converted, and the loss curve stays the same."""
    name = "node-shrink"
    [lost] = plan(long_step(place, name, 7, EVERY))
    printed = nodes.train(name, 2, (lost, "abrupt"))
    run_dir = place / "runs" / name
    assert "going on with 1 of 2 workers" in printed["said"]
    # The lost node's room is not counted, though Ray has not noticed yet.
    assert [event["workers"] for event in printed["events"] if event["kind"] == "attempt"][:2] == [2, 1]
    resharded = [(event["old"], event["new"]) for event in printed["events"] if event["kind"] == "resharded"]
    assert resharded == [("2 workers, ZeRO 1", "1 workers, ZeRO 1")]
    difference = largest_difference(run_dir, two_workers)
    assert 0 < difference < 2e-4
    recovery, *_ = recoveries(run_dir)
    record(
        "a node is lost and nothing replaces it (supervision.min_workers=1)",
        "the run goes on with fewer workers at the same global batch. The loss curve is the same up to rounding",
        recovery=recovery.seconds,
        steps=recovery.steps,
        saw=f"largest relative difference of the loss {difference:.1e}",
    )
