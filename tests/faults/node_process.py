"""A cluster of raylets on this machine, of which training loses some; for `test_nodes`.

Reads a JSON object a line from its standard input, and prints a line of JSON for each. `name` is the run's, and
`nodes` their number at its start. `losses` are pairs: a file that appears at the moment of the loss, and its kind.
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
from tests.faults.conftest import ENOUGH, launch

from causalfusion_platform.launch.cluster.session import free_port
from causalfusion_platform.tracking.journal import Journal


def node_of_a_worker(cluster: Cluster) -> Any:
    """Return the node, other than the head, that has a worker's CPU in use."""
    for node in cluster.worker_nodes:
        free = ray._private.state.available_resources_per_node()[node.node_id]
        if free.get("CPU", 0.0) < 1.0:
            return node
    raise AssertionError("no worker is on a node of its own")


def lose(cluster: Cluster, how: str) -> Any:
    """Take a worker's node away, and return it."""
    node = node_of_a_worker(cluster)
    if how == "abrupt":
        cluster.remove_node(node, allow_graceful=False)
    else:
        ray_command = Path(sys.executable).with_name("ray")
        drain = ["drain-node", f"--address={cluster.address}", f"--node-id={node.node_id}"]
        why = ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot instance reclaimed"]
        subprocess.run([ray_command, *drain, *why, "--deadline-remaining-seconds=120"], check=True, timeout=ENOUGH)
    return node


def train(cluster: Cluster, place: Path, name: str, nodes: int, losses: list[tuple[str, str]]) -> dict[str, Any]:
    """Train while nodes are lost; return what was said, and the journal."""
    while len(cluster.worker_nodes) < nodes:
        cluster.add_node(num_cpus=1, include_dashboard=False)
    assert len(cluster.worker_nodes) == nodes
    drained = []

    def act() -> None:
        for moment, how in losses:
            while not Path(moment).exists():
                time.sleep(0.005)
            node = lose(cluster, how)
            if how == "drained":
                drained.append(node)

    said: list[str] = []
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    overrides = ["train.num_workers=2", "train.cpus_per_worker=0.75"]
    launch(name, *overrides, "supervision.min_workers=1", "supervision.resource_seconds=3", said=said)
    thread.join()
    for node in drained:
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
            print(json.dumps(train(cluster, Path(sys.argv[1]), **json.loads(line))), flush=True)
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
