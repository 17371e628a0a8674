"""Waiting for a cluster that can grow. Its nodes come by a clock that passes by sleeping alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import ray.util

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.launch.cluster import growth as module
from causalfusion_platform.launch.cluster.growth import asking_for, demanded, training_demand, wait_for_room
from causalfusion_platform.launch.cluster.resources import Resources, check_training, trials_that_fit
from causalfusion_platform.ray_private import AutoscalerView

QUIET, BUSY = AutoscalerView(False, []), AutoscalerView(True, [])


class Cluster:
    """CPUs over time, an autoscaler or none, and the placement groups that are there."""

    def __init__(self) -> None:
        self.now = 0.0
        self.cpus: Callable[[float], float] = lambda now: 0.0
        self.view: Callable[[float], AutoscalerView | None] = lambda now: QUIET
        self.groups: list[list[dict[str, float]]] = []
        self.most: list[list[dict[str, float]]] = []
        self.wrong: list[str] = []

    def sleep(self, seconds: float) -> None:
        if not self.groups:
            self.wrong.append(f"nothing is asked for at {self.now}")
        self.now += seconds

    def place(self, bundles: list[dict[str, float]]) -> list[dict[str, float]]:
        self.groups.append(bundles)
        self.most = list(self.groups)
        return bundles


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    made = Cluster()
    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=made.sleep, monotonic=lambda: made.now))
    monkeypatch.setattr(module, "cluster_resources", lambda: Resources.of(made.cpus(made.now)))
    monkeypatch.setattr(module, "autoscaler_view", lambda: made.view(made.now))
    monkeypatch.setattr(ray.util, "placement_group", made.place)
    monkeypatch.setattr(ray.util, "remove_placement_group", made.groups.remove)
    yield made
    assert made.groups == []  # whatever happened, nothing is asked for any more
    assert made.wrong == []


def experiment_of(workers: int, gpus: int = 0) -> Experiment:
    train: dict[str, Any] = {"global_batch_size": workers, "num_workers": workers, "gpus_per_worker": gpus}
    train |= {"cpus_per_worker": 2}
    data = {"cpus_per_task": 0.5}
    return Experiment.model_validate({"name": "x", "model": {"preset": "tiny"}, "train": train, "data": data})


def train(workers: int, seconds: float = 300) -> None:
    experiment = experiment_of(workers)
    return wait_for_room(lambda have: check_training(experiment, have), training_demand(experiment), seconds)


def test_what_is_asked_for() -> None:
    """Each worker on one node, and a task that reads beside them."""
    assert training_demand(experiment_of(3, gpus=1)) == [Resources.of(2, 1)] * 3 + [Resources.of(0.5)]


def test_where_there_is_room_nothing_is_asked_for(cluster: Cluster, log_lines: list[str]) -> None:
    cluster.cpus = lambda now: 4.5
    train(2)
    assert (cluster.now, cluster.most, log_lines) == (0, [], [])


def test_a_cluster_that_cannot_grow_refuses_at_once(cluster: Cluster, log_lines: list[str]) -> None:
    cluster.cpus, cluster.view = (lambda now: 4.0), (lambda now: None)
    with pytest.raises(
        UserError, match=r"are 4\.5 CPUs, but the cluster has 4\n.*allowed: train.num_workers"
    ) as error:
        train(2)
    assert "autoscaler" not in str(error.value)
    assert (cluster.now, cluster.most, log_lines) == (0, [], [])


def test_from_nothing(cluster: Cluster, log_lines: list[str]) -> None:
    """Nodes come one after the other, the last one in time."""
    cluster.cpus = lambda now: 2.0 * (now // 90)
    train(2)
    assert cluster.now == 270
    assert cluster.most == [[{"CPU": 2.0}], [{"CPU": 2.0}], [{"CPU": 0.5}]]
    assert log_lines[0] == "the cluster has 0 CPUs and 0 GPUs; asking for more nodes, waiting up to 300 s for them"
    assert "waiting for nodes: the cluster has 2 CPUs and 0 GPUs, 90 of 300 s" in log_lines
    assert "waiting for nodes: the cluster has 2 CPUs and 0 GPUs, 150 of 300 s" in log_lines  # nothing new for 30 s
    assert len(log_lines) == 1 + 270 // 30 - 1


def test_nodes_that_do_not_come(cluster: Cluster) -> None:
    cluster.cpus, cluster.view = (lambda now: 2.0), (lambda now: BUSY)
    with pytest.raises(UserError) as caught:
        train(2, seconds=40)
    assert cluster.now == 40
    first, advice, more = str(caught.value).splitlines()
    assert first.endswith("are 4.5 CPUs, but the cluster has 2: no more nodes came within 40 s")
    assert advice == "  allowed: train.num_workers up to 0, or fewer train.cpus_per_worker (fractions are fine)"
    assert "ray status" in more
    assert "supervision.resource_seconds=" in more


def test_an_autoscaler_that_has_no_such_node_is_not_waited_for(cluster: Cluster) -> None:
    """Its word counts once no node is on its way."""
    wrong = [{"CPU": 2.0}]
    cluster.view = lambda now: AutoscalerView(now < 60, wrong if now > 5 else [])
    with pytest.raises(UserError, match="the cluster has 0: its autoscaler has no more nodes of this kind to add"):
        train(2)
    assert cluster.now == 60


@pytest.mark.parametrize("view", [AutoscalerView(False, [{"CPU": 64.0}]), AutoscalerView(False, [])])
def test_the_demand_of_others_says_nothing(cluster: Cluster, view: AutoscalerView) -> None:
    cluster.cpus, cluster.view = (lambda now: 8.0 * (now >= 200)), (lambda now: view)
    train(2)
    assert cluster.now == 200


def test_fewer_trials_than_wanted_are_taken_in_the_end(cluster: Cluster, log_lines: list[str]) -> None:
    """Three are wanted and asked for. There is room for two."""
    experiment = experiment_of(1)
    cluster.cpus = lambda now: 6.0 if now >= 20 else 2.0
    found = wait_for_room(
        lambda have: trials_that_fit([experiment], have),
        training_demand(experiment) * 3,
        50,
        enough=lambda fit: fit >= 3,
    )
    assert (found, cluster.now) == (2, 50)
    assert len(cluster.most) == 6
    assert log_lines[-1] == "going on with what the cluster has, 6 CPUs and 0 GPUs: no more nodes came within 50 s"


def test_an_interrupt_withdraws_the_demand(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(seconds: float) -> None:
        assert len(cluster.groups) == 3
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=interrupt, monotonic=lambda: 0.0))
    with pytest.raises(KeyboardInterrupt):
        train(2)


def test_a_demand_that_is_refused_half_way_is_withdrawn(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    def place(bundles: list[dict[str, float]]) -> Any:
        if len(cluster.groups) == 1:
            raise ValueError("no bundle")
        return cluster.place(bundles)

    monkeypatch.setattr(ray.util, "placement_group", place)
    with pytest.raises(ValueError, match="no bundle"), demanded([Resources.of(1), Resources.of(1)]):
        pass


@pytest.mark.parametrize(("view", "asked"), [(None, 0), (QUIET, 2)])
def test_asking_beside_another_wait(cluster: Cluster, view: AutoscalerView | None, asked: int) -> None:
    cluster.view = lambda now: view
    with contextlib.suppress(KeyError), asking_for([Resources.of(0, 1), Resources.of(0.01)]):
        assert cluster.groups == [[{"GPU": 1.0}], [{"CPU": 0.01}]][:asked]
        raise KeyError
