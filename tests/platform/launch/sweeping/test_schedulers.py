"""Ray Tune's schedulers of populations, and in what ours are others."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.tune.schedulers import TrialScheduler
from ray.tune.schedulers.pb2 import PB2

from causalfusion_platform.config.sweep import SweepConfig
from causalfusion_platform.launch.sweeping.schedulers import scheduler_of

SPACE = {"rate": {"log_uniform": [1e-4, 1e-2]}, "weight": {"uniform": [1.0, 3.0]}}


class PopulationMember:
    """What a scheduler asks of one of Tune's trials."""

    def __init__(self, name: str, config: dict[str, float], status: str = "RUNNING") -> None:
        self.trial_id, self.config, self.status, self.evaluated_params = name, config, status, dict[str, Any]()
        self.run_metadata = SimpleNamespace(
            checkpoint_manager=SimpleNamespace(checkpoint_config=SimpleNamespace(num_to_keep=None))
        )

    def is_finished(self) -> bool:
        return False

    def __str__(self) -> str:
        return self.trial_id


def scheduler(kind: str, *, all_at_once: bool = True) -> Any:
    section = {"space": SPACE, "num_trials": 2, "metric": "score", "mode": "min", kind: {"every_images": 64}}
    return scheduler_of(SweepConfig.model_validate(section), 640, all_at_once=all_at_once)


def measured(scheduler: Any, member: PopulationMember, images: int, score: float) -> None:
    scheduler._save_trial_state(SimpleNamespace(), images, {"images": images, "score": score}, member)


def members() -> tuple[PopulationMember, PopulationMember]:
    return PopulationMember("a", {"rate": math.log(1e-3), "weight": 2.0}), PopulationMember(
        "b", {"rate": math.log(5e-3), "weight": 1.5}
    )


@pytest.mark.parametrize("kind", ["pbt", "pb2"])
@pytest.mark.parametrize(("all_at_once", "decision"), [(True, "CONTINUE"), (False, "PAUSE")])
def test_members_are_paused_for_others_only_where_they_take_turns(
    kind: str, all_at_once: bool, decision: str
) -> None:
    runs, waits = members()
    waits.status = "PENDING"
    one = scheduler(kind, all_at_once=all_at_once)
    assert (TrialScheduler.CONTINUE, TrialScheduler.PAUSE) == ("CONTINUE", "PAUSE")
    controller = SimpleNamespace(get_trials=lambda: [runs, waits], search_alg=None)
    for member in (runs, waits):
        one._trial_state[member] = SimpleNamespace(last_perturbation_time=0, last_score=None)
    assert one.on_trial_result(controller, runs, {"images": 64, "score": 1.0}) == decision


def test_a_copy_of_a_member_that_was_measured_once_is_no_twin() -> None:
    one, (best, worst) = scheduler("pb2"), members()
    for member, score in ((best, 1.0), (worst, 2.0)):
        measured(one, member, 64, score)
    drawn = [one._get_new_config(worst, best)[0] for _ in range(20)]
    assert len({config["rate"] for config in drawn}) == len({config["weight"] for config in drawn}) == 20
    assert all(math.log(1e-4) <= config["rate"] <= math.log(1e-2) for config in drawn)
    assert all(1 <= config["weight"] <= 3 for config in drawn)
    assert best.config == members()[0].config


def test_the_gaussian_process_chooses_as_soon_as_it_can() -> None:
    plain = PB2(
        time_attr="images",
        metric="score",
        mode="min",
        perturbation_interval=64,
        hyperparam_bounds={"rate": [math.log(1e-4), math.log(1e-2)], "weight": [1.0, 3.0]},
    )
    chosen = []
    for one in (scheduler("pb2"), plain):
        best, worst = members()
        for images, score in ((64, 3.0), (128, 1.0), (192, 0.5)):
            measured(one, best, images, score)
            measured(one, worst, images, 4.0 + score)
        np.random.seed(0)  # noqa: NPY002 – Ray's PB2 draws from there
        chosen.append(one._get_new_config(worst, best)[0])
    assert chosen[0] == chosen[1] != members()[0].config
