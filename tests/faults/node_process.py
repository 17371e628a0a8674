"""A cluster of raylets on this machine, of which training loses one; for `test_nodes`.

Reads how from its standard input, a word a line, and prints a line of JSON for each.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster
from tests.faults.conftest import ENOUGH, EVERY, checkpoint, launch

from causalfusion_platform.launch.cluster.session import free_port
from causalfusion_platform.tracking.journal import Journal


def node_of_a_worker(cluster: Cluster) -> Any:
    """Return the node, other than the head, that has a worker's CPU in use."""
    for node in cluster.worker_nodes:
        free = ray._private.state.available_resources_per_node()[node.node_id]
        if free.get("CPU", 0.0) < 1.0:
            return node
    raise AssertionError("no worker is on a node of its own")


def lose(cluster: Cluster, name: str, place: Path, how: str) -> threading.Thread:
    """Take a worker's node away once the run has a checkpoint."""

    def act() -> None:
        while not Path(checkpoint(place, name, EVERY)).is_dir():
            time.sleep(0.005)
        node = node_of_a_worker(cluster)
        if how != "drained":
            cluster.remove_node(node, allow_graceful=False)
        else:
            ray_command = Path(sys.executable).with_name("ray")
            drain = ["drain-node", f"--address={cluster.address}", f"--node-id={node.node_id}"]
            why = ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot instance reclaimed"]
            subprocess.run(
                [ray_command, *drain, *why, "--deadline-remaining-seconds=120"], check=True, timeout=ENOUGH
            )
        Path(os.environ["CAUSALFUSION_TEST_FAULTS"]).unlink()  # no long step in the attempt that follows

    thread = threading.Thread(target=act)
    thread.start()
    return thread


def train_and_lose_a_node(cluster: Cluster, place: Path, how: str) -> dict[str, Any]:
    """Train on nodes of its own, and lose one unless all are kept; return what was said, and the journal."""
    # One node more than the run needs, where one is to replace the lost one.
    count = 3 if how in ("abrupt", "drained") else 2
    nodes = [cluster.add_node(num_cpus=1, include_dashboard=False) for _ in range(count)]
    name = f"node-{how}"
    said: list[str] = []
    thread = None if how == "kept" else lose(cluster, name, place, how)
    overrides = ["train.num_workers=2", "train.cpus_per_worker=0.75"]
    launch(name, *overrides, "supervision.min_workers=1", "supervision.resource_seconds=3", said=said)
    if thread is not None:
        thread.join()
    for node in nodes:
        if node in cluster.worker_nodes:
            cluster.remove_node(node)
    events = [event.model_dump() for event in Journal(place / "runs" / name).events()]
    return {"said": said, "events": events}


def main() -> None:
    # The head has no CPU: workers and reading tasks are on the others.
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "dashboard_port": free_port(), "include_dashboard": True},
    )
    os.environ["RAY_ADDRESS"] = cluster.address
    try:
        for line in sys.stdin:
            print(json.dumps(train_and_lose_a_node(cluster, Path(sys.argv[1]), line.strip())), flush=True)
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
