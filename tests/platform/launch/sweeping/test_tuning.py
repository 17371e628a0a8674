"""The ends of trials, as Ray Tune returns them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from causalfusion_platform.launch.sweeping.tuning import ends_of


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
