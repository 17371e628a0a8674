"""The number of trials at once, and their ends as Ray Tune returns them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.launch.cluster.resources import Resources
from causalfusion_platform.launch.sweeping import tuning as module
from causalfusion_platform.launch.sweeping.tuning import concurrent_trials, ends_of


def result(config: dict[str, Any] | None, error: str | None = None) -> SimpleNamespace:
    return SimpleNamespace(config=config, metrics=None, error=error)


def test_a_stop_before_a_trial_has_begun_is_not_an_end() -> None:
    """Tune returns an empty configuration of a trial that has not sent anything."""
    trials = [SimpleNamespace(name="one", values={"seed": 1}), SimpleNamespace(name="two", values={"seed": 2})]
    job: Any = SimpleNamespace(chosen_on_the_way=False, sweep=SimpleNamespace(population=None), trials=trials)
    results = [result({"trial": "two"}, "first line\nlast line"), result({}), result(None)]
    [end] = ends_of(job, results, stopped=True)
    assert (end.name, end.values, end.error) == ("two", {"seed": 2}, "last line")
    with pytest.raises(KeyError):  # without a stop every trial has begun
        ends_of(job, results, stopped=False)


def experiment_of(workers: int) -> Experiment:
    """A worker takes a CPU, and reading takes half of one."""
    train = {"global_batch_size": 12, "num_workers": workers, "cpus_per_worker": 1}
    tree = {"name": "x", "model": {"preset": "tiny"}, "train": train, "data": {"cpus_per_task": 0.5}}
    return Experiment.model_validate({**tree, "supervision": {"resource_seconds": 77}})


@pytest.mark.parametrize(
    ("most", "before", "after", "asked", "expected"),
    [
        (None, 10.0, 10.0, 1, 3),  # as many as fit
        (2, 10.0, 10.0, 2, 2),
        (None, 0.0, 4.0, 1, 1),  # the cluster grows by one
        (3, 0.0, 11.0, 3, 3),
        (5, 3.0, 6.0, 5, 2),  # less than was asked for is taken
    ],
)
def test_trials_at_once(
    monkeypatch: pytest.MonkeyPatch, most: int | None, before: float, after: float, asked: int, expected: int
) -> None:
    """The largest trial has two workers: 2.5 CPUs, and 0.01 for its own process."""
    trials = [SimpleNamespace(experiment=experiment_of(number)) for number in (1, 2)]
    job: Any = SimpleNamespace(
        experiment=experiment_of(1), trials=trials, sweep=SimpleNamespace(max_concurrent=most)
    )
    seen: list[Any] = []

    def wait_for_room(fit: Any, demand: list[Resources], seconds: float, *, enough: Any) -> int:
        try:
            found = fit(Resources.of(before))
            if enough(found):
                return int(found)
        except UserError:
            pass
        finally:
            seen.append((demand, seconds))
        return int(fit(Resources.of(after)))

    monkeypatch.setattr(module, "wait_for_room", wait_for_room)
    assert concurrent_trials(job) == expected
    assert seen == [([Resources.of(1), Resources.of(1), Resources.of(0.5)] * asked, 77)]
