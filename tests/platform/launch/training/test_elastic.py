"""How many workers there is room for, and what is done when there is too little."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import logged

from causalfusion_platform.assemble import Job
from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.launch.runs.exit_status import GaveUp
from causalfusion_platform.launch.runs.signals import StopRequest
from causalfusion_platform.launch.training import elastic as room
from causalfusion_platform.launch.training.elastic import wait_for_workers, workers_that_fit

MakeExperiment = Callable[..., Experiment]
CENTS = st.integers(1, 300)  # of a CPU or GPU


def experiment_of(
    batch: int, workers: int, *, cpu: int = 100, task: int = 50, gpu: int = 0, micro: int = 0
) -> Experiment:
    train: dict[str, Any] = {"global_batch_size": batch, "num_workers": workers, "cpus_per_worker": cpu / 100}
    train |= {"gpus_per_worker": gpu / 100, "micro_batch_size": micro or None}
    data = {"cpus_per_task": task / 100}
    tree = {"name": "x", "model": {"preset": "tiny"}, "train": train, "data": data}
    return Experiment.model_validate(tree)


@settings(max_examples=150)
@given(
    shares=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    workers=st.integers(1, 12),
    micro=st.integers(0, 3),
    cpu=CENTS,
    task=CENTS,
    gpu=st.integers(0, 200),
    room=st.tuples(st.integers(0, 13), st.integers(0, 13)),
    slack=st.tuples(st.integers(-1, 1), st.integers(-1, 1)),
)
def test_the_most_that_fit(
    shares: list[int],
    workers: int,
    micro: int,
    cpu: int,
    task: int,
    gpu: int,
    room: tuple[int, int],
    slack: tuple[int, int],
) -> None:
    """Against trying each number, with exact fractions; room for so many workers, give or take a hundredth."""
    cpus, gpus = (max(0, wanted) for wanted in (task + room[0] * cpu + slack[0], room[1] * gpu + slack[1]))
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
    found = workers_that_fit(experiment, {"CPU": cpus / 100, "GPU": gpus / 100})
    assert found == max(possible, default=0)
    if found:
        train = {**experiment.train.model_dump(), "num_workers": found}
        Experiment.model_validate({**experiment.model_dump(), "train": train})  # a valid one


def test_a_cluster_without_anything() -> None:
    assert workers_that_fit(experiment_of(8, 2), {}) == 0
    assert workers_that_fit(experiment_of(8, 2, gpu=100), {"CPU": 64}) == 0


def test_shares_of_a_gpu_are_counted_as_ray_counts_them() -> None:
    """0.3 / 0.1 is 2.9999999999999996 in floating point."""
    assert workers_that_fit(experiment_of(6, 3, cpu=10, task=10, gpu=10), {"CPU": 0.4, "GPU": 0.3}) == 3


# Waiting


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time that passes by sleeping alone; each sleep is noted."""
    sleeps: list[float] = []
    monkeypatch.setattr(room, "time", SimpleNamespace(sleep=sleeps.append, monotonic=lambda: sum(sleeps)))
    return sleeps


def wait(wanted: Experiment, cpus: Callable[[], float], stop: StopRequest | None = None) -> tuple[Job, list[str]]:
    # The job of the attempt before, which had one worker.
    train = wanted.train.model_copy(update={"num_workers": 1})
    before = Job(experiment=wanted.model_copy(update={"train": train}), attempt=4, order=1, bad_shards=("a",))
    resources = lambda: {"CPU": cpus()}  # noqa: E731
    with logged() as said:
        job = wait_for_workers(before, wanted, resources=resources, stop=stop or StopRequest())
    return job, said


def limited(workers: int, **supervision: Any) -> Experiment:
    wanted = experiment_of(24, workers)
    return wanted.model_copy(update={"supervision": wanted.supervision.model_copy(update=supervision)})


def test_with_room_for_all_nothing_is_said(clock: list[float]) -> None:
    wanted = limited(4)
    job, said = wait(wanted, lambda: 4.5)
    assert job == Job(experiment=wanted, attempt=4, order=1, bad_shards=("a",))  # all of its workers again
    assert (said, clock) == ([], [])


def test_a_node_that_comes_back_in_time(clock: list[float]) -> None:
    wanted = limited(4, resource_seconds=300.0)
    job, said = wait(wanted, lambda: 4.5 if sum(clock) >= 299 else 2.5)
    assert job.experiment == wanted
    [line] = said  # once, however often it looks
    assert "room for 2 of 4 workers; waiting up to 300 s" in line


def test_without_leave_to_shrink_it_gives_up(clock: list[float]) -> None:
    with pytest.raises(GaveUp) as caught:
        wait(limited(4, resource_seconds=20.0), lambda: 3.5)
    assert sum(clock) >= 20
    message = str(caught.value)
    assert "room for 3 workers of 1 CPUs and 0 GPUs; at least 4 are wanted" in message
    assert "supervision.min_workers=" in message


@pytest.mark.parametrize(("cpus", "workers"), [(5.5, 4), (4.5, 4), (3.5, 3), (2.5, 2)])
def test_it_shrinks_to_what_divides_the_batch(clock: list[float], cpus: float, workers: int) -> None:
    wanted = limited(6, resource_seconds=20.0, min_workers=2)
    job, said = wait(wanted, lambda: cpus)
    assert job.experiment.train.num_workers == workers
    train = wanted.train.model_copy(update={"num_workers": workers})
    assert job == Job(experiment=wanted.model_copy(update={"train": train}), attempt=4, order=1, bad_shards=("a",))
    assert said[-1] == f"going on with {workers} of 6 workers"


def test_fewer_than_allowed_gives_up(clock: list[float]) -> None:
    with pytest.raises(GaveUp, match=r"room for 1 workers.* at least 2 are wanted"):
        wait(limited(6, resource_seconds=20.0, min_workers=2), lambda: 1.5)


def test_a_request_to_stop_ends_the_wait(clock: list[float]) -> None:
    stop = StopRequest()

    def cpus() -> float:
        if sum(clock) >= 3:
            stop.ask("stopped")
        return 0.0

    wanted = limited(4)
    job, _ = wait(wanted, cpus, stop)
    assert job.experiment == wanted
    assert sum(clock) == 3
