"""Nodes that a command takes, against a count by brute force."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.platform.deploy.clusters import cluster, workload

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.deploy.placement import place, price_per_hour
from causalfusion_platform.deploy.workload import Demand
from causalfusion_platform.launch.cluster.resources import Resources


def demand(workers: int, cpus: float, gpus: float = 0, reading: float = 0.0) -> Demand:
    return Demand(workers, workers, Resources.of(cpus, gpus), Resources.of(reading))


def nodes_by_hand(node: tuple[int, int], wanted: Demand) -> int:
    """Fill nodes one worker after the other, then the CPUs for reading in pieces."""
    cpus, gpus = node
    free: list[list[float]] = []
    for _ in range(wanted.workers):
        slot = next((one for one in free if one[0] >= wanted.worker.cpus and one[1] >= wanted.worker.gpus), None)
        if slot is None:
            slot = [float(cpus), float(gpus)]
            free.append(slot)
        slot[0] -= wanted.worker.cpus
        slot[1] -= wanted.worker.gpus
    while sum(one[0] for one in free) < wanted.reading.cpus:
        free.append([float(cpus), float(gpus)])
    return len(free)


@given(
    node=st.tuples(st.integers(1, 16), st.integers(1, 8)),
    workers=st.integers(1, 24),
    quarters=st.integers(1, 16),
    gpus=st.integers(0, 1),
    reading=st.integers(0, 12),
)
def test_nodes_equal_those_filled_by_hand(
    node: tuple[int, int], workers: int, quarters: int, gpus: int, reading: int
) -> None:
    wanted = demand(workers, quarters / 4, gpus, reading / 4)
    group = {"cpus": node[0], "memory_gib": 8, "max_nodes": 100}
    file = cluster(groups={"one": group | ({"gpu": {"kind": "h100", "count": node[1]}} if gpus else {})})
    if wanted.worker.cpus > node[0]:
        with pytest.raises(UserError, match="do not fit on this cluster"):
            place(file, wanted)
        return
    assert place(file, wanted).nodes == nodes_by_hand(node, wanted)


def test_the_group_with_the_lower_price_is_taken() -> None:
    small = {"cpus": 4, "memory_gib": 8, "max_nodes": 8, "price_per_hour": 1.0}
    file = cluster(groups={"small": small, "large": small | {"cpus": 16, "price_per_hour": 3.0}})
    placement = place(file, demand(4, 4))
    assert (placement.group, placement.nodes) == ("large", 1)
    assert price_per_hour(file, placement) == 3.0
    assert place(file, demand(2, 4)).group == "small"


def test_gpus_that_do_not_fit_are_named_for_each_group() -> None:
    file = cluster(
        groups={"gpu": {"cpus": 8, "memory_gib": 64, "gpu": {"kind": "h100", "count": 2}, "max_nodes": 2}}
    )
    with pytest.raises(UserError, match=r"group gpu has at most 2 nodes, and 4 are needed"):
        place(file, demand(8, 1, 1))
    with pytest.raises(UserError, match=r"group gpu has 2 GPUs a node, and a worker takes 0"):
        place(file, demand(1, 1))


def test_a_command_asks_for_workers_and_for_reading() -> None:
    found = workload(cluster(), "train", "quickstart", "name=first").demand
    assert (found.workers, found.worker, found.reading) == (2, Resources.of(0.5), Resources.of(0.25))
    alone = workload(cluster(), "train", "quickstart", "name=first", "data.in_memory=true").demand
    assert (alone.workers, alone.reading) == (2, Resources()), "workers read by themselves"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("sample", "first"), "allowed: train or sweep"),
        ((), "allowed: train or sweep"),
        (("train", "quickstart", "--local"), "--local runs without Ray"),
        (("train", "quickstart", "name=First"), "is not a DNS label"),
        (("train", "quickstart", "name=" + "a" * 44), "at most 47 characters"),
        (("sweep", "quickstart", "name=first"), "has no section sweep"),
        (("train", "quickstart", "trian.images=3"), "train"),
    ],
)
def test_a_wrong_command_is_refused(arguments: tuple[str, ...], said: str) -> None:
    from causalfusion_platform.deploy.workload import read_workload

    with pytest.raises(UserError, match=said):
        read_workload(cluster(), arguments)
