"""Estimates of memory against the tensors of real engines."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from tests.platform.config.trees import load_experiment
from tests.platform.ranks import run_groups
from tests.platform.train.memory_process import CASES, overrides, run

from causalfusion.memory import peak_bytes
from causalfusion_platform.tasks import Task, open_task
from causalfusion_platform.tasks.activations import activation_bytes
from causalfusion_platform.train.ema_profiles import profiles_of
from causalfusion_platform.train.memory import EXACT, checkpoint_bytes, estimate


def task_of(*overrides: str) -> Task:
    return open_task(load_experiment("smoke", list(overrides)))


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """World size → for each rank, what `memory_process` counted."""
    return run_groups(run, tmp_path_factory.mktemp("memory"), [1, 2])


@pytest.mark.processes
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_exact_parts_are_those_of_real_engines(
    counted: dict[int, list[dict[str, Any]]], case: str, world: int
) -> None:
    """DeepSpeed pads partitions: at most by some hundred bytes a parameter. The mean over ranks is compared."""
    task = task_of(*overrides(case, world))
    expected = estimate(task, workers=world, zero_stage=task.experiment.train.stage).device
    for part in EXACT:
        found = sum(rank[case][part] for rank in counted[world]) / world
        assert found == pytest.approx(expected[part], rel=5e-3, abs=16), part


@pytest.mark.processes
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_checkpoints_are_as_large_as_estimated(
    counted: dict[int, list[dict[str, Any]]], case: str, world: int
) -> None:
    """The engine's files hold everything but the averages; in a small model names and padding weigh something."""
    task = task_of(*overrides(case, world))
    averages = estimate(task, workers=1, zero_stage=task.experiment.train.stage).device["averages"]
    expected = checkpoint_bytes(task) - averages
    assert counted[world][0][case]["saved"] == pytest.approx(expected, rel=0.25)


def test_frozen_weights_have_no_moments_and_no_gradients() -> None:
    """A head of 10 classes on a model of width D is trained: a layer norm and a linear layer."""
    settings = ["finetune.freeze=true", "model.preset=tiny", "train.micro_batch_size=2"]
    task = open_task(load_experiment("finetune/digits-classify", settings))
    width, whole = task.experiment.model.hidden_size, task.size.parameters
    head = 2 * width + 10 * width + 10
    device = estimate(task, workers=2, zero_stage=1, precision="fp32").device
    assert device["parameters"] == 4 * whole
    assert (device["masters"], device["moments"]) == (4 * head / 2, 8 * head / 2)
    assert device["gradients"] == 4 * head + 4 * head / 2
    averages = len(profiles_of(task.experiment.optim))
    assert device["averages"] == averages * 4 * (head / 2 + whole - head)


def test_less_is_kept_with_recomputing_and_small_parts() -> None:
    def activations(*overrides: str) -> float:
        task = task_of("model.preset=L/2", "train.global_batch_size=64", *overrides)
        return estimate(task, workers=2, zero_stage=1, precision="fp32").device["activations"]

    assert activations("train.micro_batch_size=8") == pytest.approx(activations() / 4)
    assert activations("train.activation_checkpointing=true") < activations() / 8


def test_offloading_moves_parts_to_the_host() -> None:
    """By hand, for P parameters and 4 workers."""
    names = ["model.preset=B/2", "train.zero_stage=3", "train.precision=bf16_weights", "train.gpus_per_worker=1"]
    whole = estimate(task_of(*names), workers=4, zero_stage=3)
    parameters = whole.device["masters"]  # 4 P / 4
    assert whole.host_total == 0
    assert whole.device["parameters"] == parameters / 2
    optimizer = estimate(task_of(*names, "train.offload=optimizer"), workers=4, zero_stage=3)
    assert optimizer.host == {"masters": parameters, "moments": 2 * parameters, "averages": parameters}
    assert optimizer.total == pytest.approx(whole.total - 4 * parameters)
    both = estimate(task_of(*names, "train.offload=parameters"), workers=4, zero_stage=3)
    assert both.host_total == pytest.approx(4.5 * parameters)
    assert both.total + both.host_total == pytest.approx(whole.total)


def test_without_a_gpu_all_is_in_one_place() -> None:
    found = estimate(task_of("train.offload=optimizer"), workers=1, zero_stage=1)
    assert found.host == {}
    assert {"masters", "moments", "averages"} <= set(found.device)


def test_buckets_are_whole_on_a_gpu_and_can_be_made_smaller() -> None:
    def buckets(*overrides: str) -> float:
        return estimate(task_of(*overrides), workers=2, zero_stage=2).device["buckets"]

    gpu = ["train.gpus_per_worker=1", "train.precision=bf16_weights", "train.zero_stage=2"]
    assert buckets(*gpu) == 2 * 2 * 50e6  # bf16: one is reduced while the other fills
    assert buckets(*gpu, "train.deepspeed.zero_optimization.reduce_bucket_size=1000000") == 4e6
    assert buckets(*gpu, "train.deepspeed.zero_optimization.overlap_comm=false") == 2 * 50e6
    assert buckets() < 1e6


def test_the_peak_of_one_worker_is_that_of_plain_training() -> None:
    """ZeRO 0 adds nothing to the weights, moments, averages, gradients and activations but the sampling model."""
    names = ["model.preset=L/2", "train.gpus_per_worker=1", "train.num_workers=1", "train.global_batch_size=64"]
    for more, accumulated in (((), False), (("train.micro_batch_size=4",), True)):
        task = task_of(*names, *more)
        size = task.size
        kept = activation_bytes(task.experiment, task.experiment.train.rows_at_once, "bf16")
        expected = peak_bytes(size.parameters, size.blocks, kept, accumulated=accumulated) + 4 * size.parameters
        assert estimate(task, workers=1, zero_stage=0, precision="bf16").total == pytest.approx(expected)


def test_a_grid_may_take_more_than_a_step() -> None:
    """By hand, for P parameters: few activations are less than the average that is gathered for a grid."""
    task = task_of("model.preset=L/2", "train.num_workers=1", "train.global_batch_size=1", "optim.ema_power=[0.1]")
    found, parameters = estimate(task, workers=1, zero_stage=0, precision="bf16"), task.size.parameters
    few = dataclasses.replace(found, device=found.device | {"activations": 0.0, "gradients": 0.0})
    # Weights, two moments, two averages, the model that draws samples, and the average.
    assert few.total == (4 + 8 + 8 + 4 + 4) * parameters
    assert found.total > few.total - 4 * parameters
