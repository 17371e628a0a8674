"""The CPUs and GPUs of the cluster, and what fits on them."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray

from ...config.errors import UserError

_CONNECT_SECONDS = 2.0


def resources_at_hand() -> dict[str, float]:
    """Return the CPUs and GPUs of the cluster's nodes that answer and are not being taken back.

    Ray notices the death of a node after tens of seconds, and would wait for room on it meanwhile.
    """
    draining = ray._private.state.state.get_draining_nodes()
    nodes = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in draining]
    with ThreadPoolExecutor(max_workers=32) as pool:
        answering = [node for node, lives in zip(nodes, pool.map(_answers, nodes), strict=True) if lives]
    return {kind: sum(node["Resources"].get(kind, 0.0) for node in answering) for kind in ("CPU", "GPU")}


def _answers(node: dict[str, Any]) -> bool:
    try:
        with socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), _CONNECT_SECONDS):
            return True
    except OSError:
        return False


def check_resources(num_workers: int, cpus_per_worker: float, gpus_per_worker: float, data_cpus: float) -> None:
    """Check that the cluster can hold the workers and, beside them, a task that reads data.

    Without this Ray would wait for ever, and say nothing.

    Raises:
        UserError: it cannot; the message says how many workers fit.
    """
    have = ray.cluster_resources()
    cpus, gpus = have.get("CPU", 0.0), have.get("GPU", 0.0)
    # Ray counts in 1/10000 of a CPU; so must this, or sums of fractions exceed what they equal.
    unit = 10_000
    need = (num_workers * round(cpus_per_worker * unit) + round(data_cpus * unit)) / unit
    if need > cpus:
        fit = max(round(cpus * unit) - round(data_cpus * unit), 0) // round(cpus_per_worker * unit)
        raise UserError(
            f"train.num_workers={num_workers} × train.cpus_per_worker={cpus_per_worker:g} plus "
            f"{data_cpus:g} for reading data are {need:g} CPUs, but the cluster has {cpus:g}\n"
            f"  allowed: train.num_workers up to {fit}, or fewer train.cpus_per_worker (fractions are fine)"
        )
    if num_workers * gpus_per_worker > gpus:
        raise UserError(
            f"train.num_workers={num_workers} × train.gpus_per_worker={gpus_per_worker:g} exceed the cluster's "
            f"{gpus:g} GPUs\n  set train.gpus_per_worker=0 to train on CPUs"
        )
