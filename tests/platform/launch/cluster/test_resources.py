"""How many workers, trials, sampling actors and encoders fit, against exact fractions. No Ray is started here."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from contextlib import closing
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.launch.cluster import resources as module
from causalfusion_platform.launch.cluster.resources import (
    Resources,
    check_training,
    cluster_resources,
    encoding_resources,
    sampling_actors,
    trials_that_fit,
    workers_that_fit,
)
from causalfusion_platform.ray_private import ClusterNode

CENTS = st.integers(1, 300)  # of a CPU
GPUS = st.sampled_from([0, 100])
UNITS = st.integers(0, 60_000)  # in Ray's ten-thousandths


def experiment_of(
    batch: int, workers: int, *, cpu: int = 100, task: int = 50, gpu: int = 0, micro: int = 0
) -> Experiment:
    """CPUs and GPUs are in hundredths."""
    train: dict[str, Any] = {"global_batch_size": batch, "num_workers": workers, "cpus_per_worker": cpu / 100}
    train |= {"gpus_per_worker": gpu / 100, "micro_batch_size": micro or None}
    data = {"cpus_per_task": task / 100}
    return Experiment.model_validate({"name": "x", "model": {"preset": "tiny"}, "train": train, "data": data})


def fits(have: tuple[int, int], each: tuple[int, int], beside: tuple[int, int], unit: int) -> int:
    """The most that fit, found by adding one after the other, in exact fractions."""
    count = 0
    while all(
        (count + 1) * Fraction(one, unit) + Fraction(other, unit) <= Fraction(all_of_it, unit)
        for all_of_it, one, other in zip(have, each, beside, strict=True)
        if one
    ):
        count += 1
    return count


@settings(max_examples=300)
@given(have=st.tuples(UNITS, UNITS), each=st.tuples(UNITS, UNITS), beside=st.tuples(UNITS, UNITS))
def test_quotients_are_exact_in_rays_unit(
    have: tuple[int, int], each: tuple[int, int], beside: tuple[int, int]
) -> None:
    each = each if any(each) else (7, 0)
    held, one, other = (Resources.of(cpus / 10_000, gpus / 10_000) for cpus, gpus in (have, each, beside))
    assert held.fits(one, other) == fits(have, each, beside, 10_000)


@settings(max_examples=100)
@given(amounts=st.lists(st.tuples(UNITS, UNITS), max_size=6), count=st.integers(0, 9))
def test_sums_and_products_are_exact(amounts: list[tuple[int, int]], count: int) -> None:
    total = sum((Resources.of(cpu / 10_000, gpu / 10_000) for cpu, gpu in amounts), Resources()) * count
    cpus, gpus = (count * sum(amount[kind] for amount in amounts) for kind in (0, 1))
    assert (total.cpus, total.gpus) == (cpus / 10_000, gpus / 10_000)


def test_fractions_that_floating_point_gets_wrong() -> None:
    """0.3 / 0.1 is 2.9999999999999996 in floating point, and 3 × 0.1 is more than 0.3."""
    assert Resources.of(0.3).fits(Resources.of(0.1)) == 3
    assert workers_that_fit(experiment_of(6, 3, cpu=10, task=10, gpu=100), Resources.of(0.4, 3)) == 3


# --- the cluster ------------------------------------------------------------------------------------------


def test_nodes_that_are_silent_or_taken_back_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server, socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # nothing listens there
        port, silent = server.getsockname()[1], bound.getsockname()[1]
        nodes = [
            ClusterNode("a", "127.0.0.1", port, {"CPU": 2.0, "memory": 1e9}),
            ClusterNode("b", "127.0.0.1", port, {"CPU": 0.3, "GPU": 0.1}),
            ClusterNode("dead", "127.0.0.1", silent, {"CPU": 64.0}),
            ClusterNode("draining", "127.0.0.1", port, {"CPU": 32.0, "GPU": 8.0}),
        ]
        monkeypatch.setattr(module, "alive_nodes", lambda: nodes)
        monkeypatch.setattr(module, "draining_nodes", lambda: {"draining"})
        assert cluster_resources() == Resources.of(2.3, 0.1)


# --- training ---------------------------------------------------------------------------------------------


@settings(max_examples=150)
@given(
    shares=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    workers=st.integers(1, 12),
    micro=st.integers(0, 3),
    cpu=CENTS,
    task=CENTS,
    gpu=GPUS,
    space=st.tuples(st.integers(0, 13), st.integers(0, 13)),
    slack=st.tuples(st.integers(-1, 1), st.integers(-1, 1)),
)
def test_the_most_workers_that_fit(
    shares: list[int],
    workers: int,
    micro: int,
    cpu: int,
    task: int,
    gpu: int,
    space: tuple[int, int],
    slack: tuple[int, int],
) -> None:
    """Against trying each number, with exact fractions; space for so many workers, give or take a hundredth."""
    cpus, gpus = (max(0, wanted) for wanted in (task + space[0] * cpu + slack[0], space[1] * gpu + slack[1]))
    batch = workers * (micro or 1)
    for share in shares:
        batch *= share
    experiment = experiment_of(batch, workers, cpu=cpu, task=task, gpu=gpu, micro=micro)
    possible = [
        count
        for count in range(1, workers + 1)
        if count * Fraction(cpu, 100) + Fraction(task, 100) <= Fraction(cpus, 100)
        and count * Fraction(gpu, 100) <= Fraction(gpus, 100)
        and batch % count == 0
        and (batch // count) % (micro or 1) == 0
    ]
    found = workers_that_fit(experiment, Resources.of(cpus / 100, gpus / 100))
    assert found == max(possible, default=0)
    if found:
        train = {**experiment.train.model_dump(), "num_workers": found}
        Experiment.model_validate({**experiment.model_dump(), "train": train})  # a valid one


@pytest.mark.parametrize(
    ("task", "mixup", "micro", "expected"),
    [
        ("classification", 0.8, 0, 3),
        ("classification", 0, 0, 4),
        ("classification", 0.8, 2, 3),
        ("captioning", 0.8, 0, 4),
    ],
)
def test_rows_that_are_mixed_in_pairs_are_even_on_each_worker(
    task: str, mixup: float, micro: int, expected: int
) -> None:
    """Of 12 rows, four workers have 3 each, which cannot be mixed in pairs."""
    fields = experiment_of(12, 6, task=100, micro=micro).model_dump()
    augment = {"mixup": mixup, "cutmix": 0}
    experiment = Experiment.model_validate({**fields, "task": task, "finetune": {"augment": augment}})
    assert workers_that_fit(experiment, Resources.of(5)) == expected


def test_a_cluster_without_anything() -> None:
    assert workers_that_fit(experiment_of(8, 2), Resources()) == 0
    assert workers_that_fit(experiment_of(8, 2, gpu=100), Resources.of(64)) == 0


@settings(max_examples=300)
@given(cpus=st.integers(1, 1600), workers=st.integers(1, 40), cpu=CENTS, task=CENTS)
def test_the_check_is_exact(cpus: int, workers: int, cpu: int, task: int) -> None:
    """Nothing that fits is refused, and as many as fit are named."""
    experiment = experiment_of(workers, workers, cpu=cpu, task=task)
    try:
        check_training(experiment, Resources.of(cpus / 100))
    except UserError as error:
        assert workers * cpu + task > cpus
        found = re.search(r"train.num_workers up to (\d+)", str(error))
        assert found is not None
        assert int(found[1]) == fits((cpus, 0), (cpu, 0), (task, 0), 100)
    else:
        assert workers * cpu + task <= cpus


def test_too_few_cpus() -> None:
    with pytest.raises(UserError) as caught:
        check_training(experiment_of(4, 4, cpu=50, task=25), Resources.of(2))
    message = str(caught.value)
    assert "train.num_workers=4 × train.cpus_per_worker=0.5 plus 0.25 for reading data are 2.25 CPUs" in message
    assert "the cluster has 2\n" in message
    assert "train.num_workers up to 3" in message


def test_without_cpus() -> None:
    with pytest.raises(UserError, match=r"the cluster has 0\n.*up to 0"):
        check_training(experiment_of(1, 1), Resources())


@pytest.mark.parametrize("gpus", [0, 2])
def test_too_few_gpus(gpus: int) -> None:
    with pytest.raises(UserError) as caught:
        check_training(experiment_of(4, 4, gpu=100), Resources.of(64, gpus))
    message = str(caught.value)
    assert "train.num_workers=4 × train.gpus_per_worker=1" in message
    assert f"{gpus} GPUs" in message
    assert "train.gpus_per_worker=0" in message


# --- trials -----------------------------------------------------------------------------------------------


@settings(max_examples=150)
@given(
    trials=st.lists(st.tuples(st.integers(1, 4), CENTS, CENTS, GPUS), min_size=1, max_size=3),
    cpus=st.integers(1, 4000),
    gpus=st.integers(0, 2000),
)
def test_the_most_trials_that_fit(trials: list[tuple[int, int, int, int]], cpus: int, gpus: int) -> None:
    """As many as fit of the largest, each with its reading task and its own process of 0.01 CPU."""
    experiments = [experiment_of(12, n, cpu=cpu, task=task, gpu=gpu) for n, cpu, task, gpu in trials]
    most = [fits((cpus, gpus), (n * cpu + task + 1, n * gpu), (0, 0), 100) for n, cpu, task, gpu in trials]
    training_fits = all(n * cpu + task <= cpus and n * gpu <= gpus for n, cpu, task, gpu in trials)
    have = Resources.of(cpus / 100, gpus / 100)
    if training_fits:
        assert trials_that_fit(experiments, have) == max(1, min(most))
    else:
        with pytest.raises(UserError, match=r"train\.num_workers="):
            trials_that_fit(experiments, have)


# --- sampling actors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "have", "expected"),
    [
        (None, Resources.of(2), (2, 0)),
        (None, Resources.of(0.5), (1, 0)),
        (None, Resources(), (1, 0)),  # one that waits: nodes may join
        (None, Resources.of(16, 4), (4, 1)),
        (None, Resources.of(1, 8), (2, 1)),
        (3, Resources.of(2), (3, 0)),  # each computes on one thread and reserves half a CPU
        (4, Resources.of(2), (4, 0)),
        (1, Resources.of(16, 4), (1, 1)),
    ],
)
def test_sampling_actors(wanted: int | None, have: Resources, expected: tuple[int, int]) -> None:
    assert sampling_actors(wanted, have) == expected


@pytest.mark.parametrize(
    ("wanted", "have", "allowed"),
    [
        (5, Resources.of(2), "allowed: 1 to 4, 0.5 CPUs each"),
        (0, Resources.of(2), "allowed: 1 to 4"),
        (5, Resources.of(64, 4), "allowed: 1 to 4, 0.5 CPUs and a GPU each"),
    ],
)
def test_more_sampling_actors_than_fit(wanted: int, have: Resources, allowed: str) -> None:
    with pytest.raises(UserError) as caught:
        sampling_actors(wanted, have)
    assert f"--workers {wanted}, but the cluster has {have.cpus:g} CPUs" in str(caught.value)
    assert allowed in str(caught.value)


# --- encoders ---------------------------------------------------------------------------------------------

Nodes = Callable[[list[dict[str, float]]], None]


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Nodes:
    """Return a function that sets the nodes of the cluster."""

    def set_nodes(resources: list[dict[str, float]]) -> None:
        alive = [ClusterNode(str(index), "127.0.0.1", 1, node) for index, node in enumerate(resources)]
        monkeypatch.setattr(module, "alive_nodes", lambda: alive)

    return set_nodes


@pytest.mark.parametrize(
    "resources",
    [
        [{"CPU": 1.0}],
        [{"CPU": 2.0}],
        [{"CPU": 16.0}, {"CPU": 4.0}],
        [{"CPU": 64.0}] * 3,
        [{"CPU": 2.0, "GPU": 1.0}],
        [{"CPU": 16.0, "GPU": 1.0}],
        [{"CPU": 96.0, "GPU": 8.0}] * 2,
        [{"CPU": 8.0}, {"CPU": 16.0, "GPU": 2.0}],
    ],
)
def test_encoders_leave_cpus_for_the_tasks_that_feed_them(nodes: Nodes, resources: list[dict[str, float]]) -> None:
    nodes(resources)
    found = encoding_resources(None)
    cpus, gpus = (sum(node.get(kind, 0.0) for node in resources) for kind in ("CPU", "GPU"))
    assert found.encoders == (gpus or len(resources))
    assert found.gpus_per_encoder == bool(gpus)
    rest = cpus - found.encoders * found.cpus_per_encoder
    assert rest >= found.cpus_per_decoder + 0.1  # one task that decodes and one that writes
    if not gpus:  # on the smallest node too
        assert min(node["CPU"] for node in resources) >= found.threads >= 1


@pytest.mark.parametrize(
    ("resources", "encoders", "message"),
    [
        ([{"CPU": 4.0}], 0, "--encoders must be at least 1, got 0"),
        ([], None, "no node of the cluster has CPUs"),
        ([{"CPU": 0.0, "GPU": 1.0}], 1, "no node of the cluster has CPUs"),
        ([{"CPU": 4.0}], 5, "--encoders 5, but 1 nodes have 4 CPUs"),
        ([{"CPU": 16.0, "GPU": 2.0}], 3, "--encoders 3, but the cluster has 2 GPUs"),
    ],
)
def test_more_encoders_than_fit_are_refused(
    nodes: Nodes, resources: list[dict[str, float]], encoders: int | None, message: str
) -> None:
    nodes(resources)
    with pytest.raises(UserError, match=message):
        encoding_resources(encoders)
