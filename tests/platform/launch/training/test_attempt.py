"""The driver's side of an attempt before its workers are there. Ray's calls are noted, and no Ray is started."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from causalfusion_platform.assemble import Job
from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.launch.runs.exit_status import StoppedRun
from causalfusion_platform.launch.runs.signals import StopRequest
from causalfusion_platform.launch.training import attempt as module
from causalfusion_platform.launch.training.attempt import Attempt
from causalfusion_platform.launch.training.progress_actor import GroupStatus


class Remote:
    """Ray's handle of a class, and of its actor."""

    def __init__(self) -> None:
        self.options_given: dict[str, Any] = {}
        self.read = SimpleNamespace(remote=lambda: GroupStatus())
        self.command = SimpleNamespace(remote=lambda _: None)

    def options(self, **given: Any) -> Remote:
        self.options_given = given
        return self

    def remote(self, run_dir: str) -> Remote:
        return self


@pytest.fixture
def actor(monkeypatch: pytest.MonkeyPatch) -> Iterator[Remote]:
    """The actor of an attempt whose training never gets its workers."""
    made, over = Remote(), threading.Event()
    monkeypatch.setattr(ray, "remote", lambda _: made)
    monkeypatch.setattr(ray, "get", lambda found, timeout: found)
    monkeypatch.setattr(ray, "kill", lambda _: None)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "ab" * 28))
    monkeypatch.setattr(module, "draining_nodes", lambda: set())
    monkeypatch.setattr(module, "FOLLOW_SECONDS", 0.01)
    monkeypatch.setattr(module, "_trainer", lambda *_: SimpleNamespace(fit=over.wait))
    yield made
    over.set()


MakeExperiment = Callable[..., Experiment]


def test_the_progress_actor_stays_on_the_drivers_node(actor: Remote, make_experiment: MakeExperiment) -> None:
    """It takes no CPU, so that it runs on a head without any."""
    Attempt(Job(experiment=make_experiment()), StopRequest(), lambda _: None)
    place = actor.options_given["scheduling_strategy"]
    assert isinstance(place, NodeAffinitySchedulingStrategy)
    assert (place.node_id, place.soft) == ("ab" * 28, False)
    assert actor.options_given["num_cpus"] == 0


def test_a_stop_does_not_wait_for_room(
    actor: Remote, make_experiment: MakeExperiment, log_lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the wait is said."""
    monkeypatch.setattr(module, "_LATE_SECONDS", 0.0)
    stop = StopRequest()
    threading.Timer(0.2, lambda: stop.ask("stopped")).start()
    job = Job(experiment=make_experiment(supervision={"start_seconds": 777}))
    with pytest.raises(StoppedRun, match="was stopped before its workers had started"):
        Attempt(job, stop, lambda _: None).run()
    [line] = log_lines
    assert "no worker has started" in line
    assert "waiting up to 777 s (supervision.start_seconds)" in line
