"""Nodes of a cluster that a command takes, and their price."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.errors import UserError
from ..launch.cluster.resources import Resources
from .cluster_file import ClusterFile, Group
from .workload import Demand


@dataclass(frozen=True)
class Placement:
    """Nodes of one group for all workers of a command."""

    group: str
    """Name of the group."""
    nodes: int
    """Nodes that all workers take."""
    least_nodes: int
    """Nodes that the smallest number of workers takes."""
    workers_per_node: int
    """Most workers of a node."""


def capacity(group: Group) -> Resources:
    """Return CPUs and GPUs of a node of a group."""
    return Resources.of(group.cpus, group.gpu.count if group.gpu is not None else 0)


def place(cluster: ClusterFile, demand: Demand) -> Placement:
    """Choose the group whose nodes hold a command at the lowest price. Groups of one price: the first in the file.

    CPUs for reading data are taken wherever a node has some left. Groups with GPUs are for workers with GPUs alone.

    Raises:
        UserError: no group holds it. The message says why for each.
    """
    fits, faults = [], []
    for name, group in cluster.groups.items():
        each = capacity(group).fits(demand.worker)
        if bool(demand.worker.gpus) != (group.gpu is not None):
            has = f"{group.gpu.count} GPUs a node" if group.gpu is not None else "no GPUs"
            faults.append(f"group {name} has {has}, and a worker takes {demand.worker.gpus:g}")
        elif not each:
            faults.append(f"group {name} has {group.cpus:g} CPUs a node, and a worker takes {demand.worker.cpus:g}")
        else:
            nodes = _nodes(group, demand, demand.workers)
            if nodes <= group.max_nodes:
                fits.append(Placement(name, nodes, _nodes(group, demand, demand.least_workers), each))
            else:
                faults.append(f"group {name} has at most {group.max_nodes} nodes, and {nodes} are needed")
    if not fits:
        listed = "\n".join(f"  {fault}" for fault in faults)
        raise UserError(
            f"{demand.workers} workers of {demand.worker.cpus:g} CPUs and {demand.worker.gpus:g} GPUs, with "
            f"{demand.reading.cpus:g} CPUs for reading data, do not fit on this cluster:\n{listed}\n"
            f"  allowed: fewer train.num_workers or train.cpus_per_worker, train.gpus_per_worker 0 or 1, or larger "
            f"groups in the cluster file"
        )
    return min(fits, key=lambda one: one.nodes * cluster.groups[one.group].price_per_hour)


def price_per_hour(cluster: ClusterFile, placement: Placement) -> float:
    """Return the price per hour of the head and of a placement's nodes."""
    return cluster.head.price_per_hour + placement.nodes * cluster.groups[placement.group].price_per_hour


def _nodes(group: Group, demand: Demand, workers: int) -> int:
    """Return the nodes for workers and, beside them, for the tasks that read their data."""
    node = capacity(group)
    nodes = -(-workers // node.fits(demand.worker))
    cpus = (demand.worker * workers + demand.reading).cpu_units
    return max(nodes, -(-cpus // node.cpu_units))
