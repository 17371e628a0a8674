"""The ZeRO stage of an attempt: a run keeps that of its checkpoints unless its user names another."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.platform.checkpoint.made import put_checkpoint

from causalfusion_platform.assemble import Job
from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.launch.training.elastic import with_workers
from causalfusion_platform.launch.training.stage import with_stage

MakeExperiment = Callable[..., Experiment]


def stage_of(experiment: Experiment, workers: int = 1) -> int | None:
    """The stage of an attempt with fewer workers."""
    job = with_stage(Job(experiment=with_workers(experiment, workers)), experiment)
    assert job.experiment.train.num_workers == workers
    return job.experiment.train.zero_stage


def test_a_new_run_has_the_stage_of_all_its_workers(make_experiment: MakeExperiment) -> None:
    assert stage_of(make_experiment()) == 0
    assert stage_of(make_experiment(train={"num_workers": 2}), workers=2) == 1
    assert stage_of(make_experiment(train={"num_workers": 2}), workers=1) == 1


@pytest.mark.parametrize("written", [0, 1, 2, 3])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_keeps_the_stage_of_its_checkpoints(
    make_experiment: MakeExperiment, written: int, workers: int
) -> None:
    """One that began with ZeRO 1 on one worker, as earlier versions did, goes on with it."""
    experiment = make_experiment(train={"num_workers": 2})
    put_checkpoint(Job(experiment=experiment).checkpoints, 64, zero_stage=written)
    assert stage_of(experiment, workers) == written
    damaged = put_checkpoint(Job(experiment=experiment).checkpoints, 128, zero_stage=written)
    (damaged / "checkpoint.json").write_text("{")
    assert stage_of(experiment, workers) == written


def test_the_user_may_name_another(make_experiment: MakeExperiment) -> None:
    experiment = make_experiment(train={"zero_stage": 2})
    put_checkpoint(Job(experiment=experiment).checkpoints, 64, zero_stage=1)
    assert stage_of(experiment) == 2
    offloaded = make_experiment(train={"offload": "parameters"})  # works with ZeRO 3 alone
    assert stage_of(offloaded) == 3
