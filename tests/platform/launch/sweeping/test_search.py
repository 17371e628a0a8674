"""What Ray Tune is told: points that are the same at every launch, and an Optuna study that outlives its driver."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from pydantic import ValidationError
from scipy import stats

from causalfusion_platform.config.compose import Composed, compose_experiment
from causalfusion_platform.config.errors import UserError
from causalfusion_platform.config.sweep import Distribution, SweepConfig
from causalfusion_platform.launch.sweeping.job import SweepJob, job_of, points_tried
from causalfusion_platform.launch.sweeping.population import values_of
from causalfusion_platform.launch.sweeping.search import (
    STUDY_FILE,
    measuring,
    optuna_search,
    optuna_trial,
    search_of,
)
from causalfusion_platform.launch.sweeping.trials import draw, point_name, random_points, trials_of

SPACE = "sweep.space={optim.base_lr: {log_uniform: [1.0e-4, 1.0e-2]}, objective.ar_weight: {uniform: [1.0, 3.0]}}"


def composed(*overrides: str) -> Composed:
    return compose_experiment("smoke", ["name=search", *overrides])


# Points at random


def test_points_are_the_same_at_every_launch(home: Path) -> None:
    few, many = (trials_of(composed(SPACE, f"sweep.num_trials={number}", "seed=5")) for number in (3, 20))
    assert [trial.name for trial in few] == [trial.name for trial in many[:3]]
    assert [trial.values for trial in few] == [trial.values for trial in many[:3]]
    others = trials_of(composed(SPACE, "sweep.num_trials=3", "seed=6"))
    assert {trial.name for trial in few}.isdisjoint(trial.name for trial in others)
    assert few[0].name == f"000.{point_name(few[0].values)}"
    assert few[0].experiment.optim.base_lr == few[0].values["optim.base_lr"]


def test_points_follow_their_laws() -> None:
    """Kolmogorov and Smirnov's test of 2,000 draws; χ² for what is discrete."""
    generator, count = np.random.default_rng(0), 2000

    def drawn(**law: Any) -> list[Any]:
        return [draw(Distribution(**law), generator) for _ in range(count)]

    low, high = 1e-4, 1e-1
    logs = [math.log(value / low) / math.log(high / low) for value in drawn(log_uniform=(low, high))]
    assert stats.kstest(logs, "uniform").pvalue > 0.01
    assert stats.kstest([(value - 1) / 2 for value in drawn(uniform=(1.0, 3.0))], "uniform").pvalue > 0.01
    whole = drawn(integers=(2, 5))
    assert sorted(set(whole)) == [2, 3, 4, 5]
    assert stats.chisquare([whole.count(value) for value in (2, 3, 4, 5)]).pvalue > 0.01
    chosen = drawn(choice=["raster", "random"])
    assert stats.chisquare([chosen.count(value) for value in ("raster", "random")]).pvalue > 0.01


def test_what_a_name_shows_is_what_is_trained() -> None:
    for value in random_points(
        SweepConfig(space={"a.b": Distribution(log_uniform=(1e-5, 1.0))}, num_trials=50), seed=1
    ):
        assert float(f"{value['a.b']:.4g}") == value["a.b"]
        assert str(value["a.b"]) in point_name(value)


def test_seeds_repeat_each_point(home: Path) -> None:
    trials = trials_of(composed(SPACE, "sweep.num_trials=2", "sweep.seeds=[0,7]"))
    assert [trial.values["seed"] for trial in trials] == [0, 7, 0, 7]
    assert trials[0].values["optim.base_lr"] == trials[1].values["optim.base_lr"]
    assert [trial.experiment.seed for trial in trials] == [0, 7, 0, 7]
    assert len({trial.name for trial in trials}) == 4


@pytest.mark.parametrize(
    ("section", "part"),
    [
        ({}, "give either grid"),
        ({"grid": {"seed": [1]}, "space": {"a": {"uniform": [0, 1]}}}, "give either grid"),
        ({"space": {"a": {"uniform": [0, 1]}}}, "space needs num_trials"),
        ({"grid": {"seed": [1]}, "num_trials": 3}, "leave num_trials and search out"),
        ({"grid": {"seed": [1]}, "seeds": [1]}, "seed is searched and seeds are given"),
        ({"space": {"a": {"uniform": [1, 0]}}, "num_trials": 1}, "from a smaller number to a larger"),
        ({"space": {"a": {"log_uniform": [0, 1]}}, "num_trials": 1}, "needs positive numbers"),
        ({"space": {"a": {}}, "num_trials": 1}, "give one of uniform, log_uniform, integers and choice, not 0"),
        ({"space": {"a": {"choice": []}}, "num_trials": 1}, "choice has no values"),
        (
            {"grid": {"seed": [1]}, "asha": {"grace_images": 1}, "pbt": {"every_images": 1}},
            "asha and pbt are given",
        ),
        ({"grid": {"a": [1]}, "pbt": {"every_images": 1}}, "leave grid and search out"),
        ({"grid": {"a": [1]}, "asha": {"grace_images": 1}, "objectives": {"b": "min"}}, "leave objectives out"),
        (
            {"space": {"a": {"uniform": [0, 1]}}, "num_trials": 2, "search": "optuna", "asha": {"grace_images": 1}},
            "asha ends trials whose scores optuna would take for finished ones",
        ),
        (
            {"space": {"a": {"choice": [1, 2]}}, "num_trials": 2, "pb2": {"every_images": 1}},
            "may hold uniform and log_uniform only",
        ),
    ],
)
def test_sections_that_contradict_themselves(section: dict[str, Any], part: str) -> None:
    with pytest.raises(ValidationError) as caught:
        SweepConfig.model_validate(section)
    assert part in str(caught.value)


# Measuring on the way


def test_a_population_has_a_checkpoint_at_each_comparison(home: Path) -> None:
    before = composed(SPACE, "sweep.num_trials=2", "sweep.metric=fd_digits_cnn", "sweep.pbt={every_images: 640}")
    after = measuring(before).experiment
    train = after.train
    assert after.evaluation.while_training
    assert (train.sample_every_images, train.checkpoint_every_images, train.keep_every_images) == (640, 640, 640)


def test_what_is_not_measured_on_the_way(home: Path) -> None:
    with pytest.raises(UserError, match="goodput is not measured on the way; what is: class_accuracy"):
        job_of(composed("sweep.grid={seed: [0, 1]}", "sweep.metric=goodput", "sweep.asha={grace_images: 640}"))
    with pytest.raises(UserError, match=r"every 100 images, which are no multiple of train\.global_batch_size=64"):
        job_of(composed(SPACE, "sweep.num_trials=2", "sweep.pbt={every_images: 100}"))


def test_a_search_without_comparisons_is_left_as_it_is(home: Path) -> None:
    plain = composed("sweep.grid={seed: [0, 1]}")
    assert measuring(plain) is plain
    job = job_of(plain)
    search = search_of(job.sweep, job.trials, 1024, 2)
    assert (search.total, search.waiting, search.scheduler, search.algorithm) == (2, 2, None, None)


def test_pb2_sees_orders_of_magnitude_alike(home: Path) -> None:
    """Its Gaussian process gets logarithms; what is trained is the number itself, inside its bounds."""
    manner = ("sweep.num_trials=2", "sweep.metric=fd_digits_cnn", "sweep.pb2={every_images: 640}")
    job = job_of(composed(SPACE, *manner))
    search = search_of(job.sweep, job.trials, 1280, 2)
    log_low, log_high = math.log(1e-4), math.log(1e-2)
    rate, weight = search.scheduler._hyperparam_bounds.values()
    assert (rate, weight) == ([log_low, log_high], [1.0, 3.0])
    first = job.trials[0]
    held = {key: search.space[key].sample(config={"trial": first.name}) for key in job.sweep.space}
    assert held["optim.base_lr"] == math.log(first.values["optim.base_lr"])
    assert held["objective.ar_weight"] == first.values["objective.ar_weight"]
    assert values_of(job.sweep, held) == first.values
    middle = {"optim.base_lr": (log_low + log_high) / 2, "objective.ar_weight": 2.0}
    assert values_of(job.sweep, middle) == {"optim.base_lr": 1e-3, "objective.ar_weight": 2.0}
    # float32 of PB2 may lie a little outside
    assert values_of(job.sweep, {"optim.base_lr": log_high + 1e-6, "objective.ar_weight": 0.9999999}) == {
        "optim.base_lr": 1e-2,
        "objective.ar_weight": 1.0,
    }


# Optuna


def optuna_job(*more: str, space: str = SPACE) -> SweepJob:
    return job_of(composed(space, "sweep.search=optuna", "sweep.num_trials=4", "sweep.metric=fd_digits_cnn", *more))


def test_a_study_outlives_its_driver(home: Path) -> None:
    """Two points finished, one was under way when the driver was killed: it is asked for again, and first."""
    job = optuna_job("sweep.mode=min")
    folder = job.experiment.run_dir
    search = optuna_search(job.sweep, folder, 0)
    assert (search.total, search.waiting) == (4, 4)
    asked = [search.algorithm.suggest(f"trial-{number}") for number in range(3)]
    for number in range(2):
        search.algorithm.on_trial_complete(f"trial-{number}", {"fd_digits_cnn": float(number)})

    again = optuna_search(job.sweep, folder, 0)
    assert (again.total, again.waiting) == (4, 2)
    assert again.algorithm.suggest("other-0") == asked[2]
    new = again.algorithm.suggest("other-1")
    assert new not in asked
    # What it knows of the finished ones are their very points and values.
    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{folder / STUDY_FILE}")
    done = study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))
    assert [(trial.params, trial.value) for trial in done] == [(asked[0], 0.0), (asked[1], 1.0)]
    assert study.direction == optuna.study.StudyDirection.MINIMIZE


def test_several_objectives(home: Path) -> None:
    job = optuna_job("sweep.objectives={fd_digits_cnn: min, class_accuracy: max}")
    search = optuna_search(job.sweep, job.experiment.run_dir, 0)
    for number, values in enumerate([(1.0, 0.5), (2.0, 0.9), (3.0, 0.4)]):
        search.algorithm.suggest(f"trial-{number}")
        search.algorithm.on_trial_complete(
            f"trial-{number}", dict(zip(("fd_digits_cnn", "class_accuracy"), values, strict=True))
        )
    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{job.experiment.run_dir / STUDY_FILE}")
    assert sorted(trial.values for trial in study.best_trials) == [[1.0, 0.5], [2.0, 0.9]]


def test_the_same_point_is_the_same_run(home: Path) -> None:
    job = optuna_job()
    config = {"optim.base_lr": 0.00123456789, "objective.ar_weight": 2.0000001}
    trial = optuna_trial(job.composed, job.sweep, config)
    assert trial.name == "base_lr-0.001235.ar_weight-2.0"
    assert trial.experiment.optim.base_lr == 0.001235
    with pytest.raises(UserError, match="not known beforehand"):
        trials_of(job.composed)


def test_points_that_were_tried_are_found_again(home: Path) -> None:
    """Also of keys that a run's configuration no longer has: a preset is expanded there."""
    from causalfusion_platform.launch.runs.state import RunState

    job = optuna_job("sweep.mode=min", space="sweep.space={model.preset: {choice: [tiny, digits]}}")
    assert [*job.sweep.space] == ["model.preset"]
    assert points_tried(job) == []
    search = optuna_search(job.sweep, job.experiment.run_dir, 0)
    trials = [optuna_trial(job.composed, job.sweep, search.algorithm.suggest(f"trial-{n}")) for n in range(2)]
    trial = trials[0]
    trial.experiment.run_dir.mkdir(parents=True)
    tree = trial.experiment.model_dump(mode="json")
    RunState(tracking_uri="", config=tree, finished=True).write(trial.experiment.run_dir)
    [found] = points_tried(job)
    assert (found.name, found.values) == (trial.name, trial.values)
    assert found.experiment == trial.experiment


@pytest.mark.parametrize(
    ("change", "space", "part"),
    [
        (["sweep.mode=max"], SPACE, "of other targets: was {'fd_digits_cnn': 'min'}, now {'fd_digits_cnn': 'max'}"),
        (["sweep.metric=class_accuracy"], SPACE, "of other targets"),
        ([], "sweep.space={optim.base_lr: {log_uniform: [1.0e-4, 1.0e-2]}}", "of other space"),
    ],
)
def test_a_study_is_no_answer_to_another_question(home: Path, change: list[str], space: str, part: str) -> None:
    job = optuna_job("sweep.mode=min")
    optuna_search(job.sweep, job.experiment.run_dir, 0)
    other = optuna_job("sweep.mode=min", *change, space=space)
    with pytest.raises(UserError) as caught:
        optuna_search(other.sweep, job.experiment.run_dir, 0)
    assert part in str(caught.value)


def test_what_trials_will_not_be_ranked_by(home: Path) -> None:
    with pytest.raises(UserError) as caught:
        job_of(composed("sweep.grid={seed: [0, 1]}", "sweep.metric=fd_digit_cnn"))
    assert "ranked by 'fd_digit_cnn', which their summaries will not have; did you mean fd_digits_cnn?" in str(
        caught.value
    )
    with pytest.raises(UserError, match="fd_digits_cnn_s4"):
        job_of(composed("sweep.grid={seed: [0, 1]}", "sweep.metric=fd_digits_cnn_s4"))
    job_of(composed("sweep.grid={seed: [0, 1]}", "sweep.metric=fd_digits_cnn_s4", "evaluation.ar_steps=[4]"))
    job_of(composed("sweep.grid={seed: [0, 1]}", "sweep.metric=images_per_second"))
