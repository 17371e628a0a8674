"""Waiting for workers that do not fit on the cluster, and going on with fewer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from tests.conftest import logged

from causalfusion_platform.assemble import Job
from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.launch.cluster.resources import Resources
from causalfusion_platform.launch.runs.exit_status import GaveUp
from causalfusion_platform.launch.runs.signals import StopRequest
from causalfusion_platform.launch.training import elastic
from causalfusion_platform.launch.training.elastic import wait_for_workers


def experiment_of(batch: int, workers: int) -> Experiment:
    """Workers of one CPU each, and half a CPU for reading."""
    train: dict[str, Any] = {"global_batch_size": batch, "num_workers": workers, "cpus_per_worker": 1}
    data = {"cpus_per_task": 0.5}
    return Experiment.model_validate({"name": "x", "model": {"preset": "tiny"}, "train": train, "data": data})


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time that passes by sleeping alone; each sleep is noted."""
    sleeps: list[float] = []
    monkeypatch.setattr(elastic, "time", SimpleNamespace(sleep=sleeps.append, monotonic=lambda: sum(sleeps)))
    return sleeps


def wait(wanted: Experiment, cpus: Callable[[], float], stop: StopRequest | None = None) -> tuple[Job, list[str]]:
    # The job of the attempt before, which had one worker.
    train = wanted.train.model_copy(update={"num_workers": 1})
    before = Job(experiment=wanted.model_copy(update={"train": train}), attempt=4, order=1, bad_shards=("a",))
    resources = lambda: Resources.of(cpus())  # noqa: E731
    with logged() as said:
        job = wait_for_workers(before, wanted, resources=resources, stop=stop or StopRequest())
    return job, said


def limited(workers: int, **supervision: Any) -> Experiment:
    wanted = experiment_of(24, workers)
    return wanted.model_copy(update={"supervision": wanted.supervision.model_copy(update=supervision)})


def test_where_all_fit_nothing_is_said(clock: list[float]) -> None:
    wanted = limited(4)
    job, said = wait(wanted, lambda: 4.5)
    assert job == Job(experiment=wanted, attempt=4, order=1, bad_shards=("a",))  # all of its workers again
    assert (said, clock) == ([], [])


def test_a_node_that_comes_back_in_time(clock: list[float]) -> None:
    wanted = limited(4, resource_seconds=300.0)
    job, said = wait(wanted, lambda: 4.5 if sum(clock) >= 299 else 2.5)
    assert job.experiment == wanted
    [line] = said  # once, however often it looks
    assert "2 of 4 workers fit on the cluster; waiting up to 300 s" in line


def test_without_leave_to_shrink_it_gives_up(clock: list[float]) -> None:
    with pytest.raises(GaveUp) as caught:
        wait(limited(4, resource_seconds=20.0), lambda: 3.5)
    assert sum(clock) >= 20
    message = str(caught.value)
    assert "3 workers of 1 CPUs and 0 GPUs fit on the cluster; at least 4 are wanted" in message
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
    with pytest.raises(GaveUp, match=r"1 workers .* fit on the cluster; at least 2 are wanted"):
        wait(limited(6, resource_seconds=20.0, min_workers=2), lambda: 1.5)


@pytest.mark.parametrize(("comes", "asked"), [(0, []), (7, ["asked", "withdrawn"]), (99, ["asked", "withdrawn"])])
def test_nodes_are_asked_for_while_it_waits(clock: list[float], comes: float, asked: list[str]) -> None:
    """Once, and no longer than the wait."""
    seen: list[str] = []

    @contextmanager
    def asking() -> Iterator[None]:
        seen.append("asked")
        yield
        seen.append("withdrawn")

    wanted = limited(4, resource_seconds=20.0, min_workers=1)
    job = Job(experiment=wanted)
    resources = lambda: Resources.of(4.5 if sum(clock) >= comes else 1.5)  # noqa: E731
    found = wait_for_workers(job, wanted, resources=resources, stop=StopRequest(), asking=asking)
    assert found.experiment.train.num_workers == (1 if comes == 99 else 4)
    assert seen == asked


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
