"""Estimates of memory against the tensors of real engines, and against what autograd keeps."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from tests.platform.config.trees import load_experiment
from tests.platform.ranks import run_groups
from tests.platform.train.memory_process import CASES, overrides, run

from causalfusion import Objective, build_model, draw
from causalfusion_platform.train.memory import EXACT, activation_bytes, checkpoint_bytes, estimate, longest_sequence


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
    experiment = load_experiment("smoke", overrides(case, world))
    expected = estimate(experiment, workers=world, zero_stage=experiment.train.zero_stage).device
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
    experiment = load_experiment("smoke", overrides(case, world))
    averages = estimate(experiment, workers=1, zero_stage=experiment.train.zero_stage).device["averages"]
    expected = checkpoint_bytes(experiment) - averages
    assert counted[world][0][case]["saved"] == pytest.approx(expected, rel=0.25)


def saved_bytes(overrides: list[str], precision: str, rows: int) -> tuple[float, float]:
    """What autograd keeps of the longest sequence, weights left out, and the estimate of it."""
    experiment = load_experiment("smoke", overrides)
    model = build_model(experiment.model)
    kept: dict[int, tuple[int, torch.Tensor]] = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    settings = (experiment.model, experiment.objective, experiment.diffusion)
    drawn = draw(*settings, seed=0, step=0, samples=range(rows))
    if experiment.objective.num_ar_steps is None:
        drawn = dataclasses.replace(drawn, sizes=[experiment.model.num_tokens - 1, 1])
    size = experiment.model.input_size
    latents = torch.randn(rows, experiment.model.in_channels, size, size)
    objective = Objective(model, experiment.objective, experiment.diffusion)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
    ):
        objective(model, latents, torch.zeros(rows, dtype=torch.int64), drawn)
    return sum(count for count, _ in kept.values()), activation_bytes(experiment, rows, precision)


@pytest.mark.parametrize(
    ("overrides", "precision"),
    [
        (["model.preset=S/2", "model.depth=3"], "fp32"),
        (["model.preset=S/2", "model.depth=3"], "bf16"),
        (["model.preset=S/2", "model.depth=2", "objective.time_copies=2"], "fp32"),
        (["model.preset=in-context-4", "model.hidden_size=256", "model.depth=3"], "fp32"),
        (["model.preset=DiT-L/2", "model.hidden_size=256", "model.depth=3", "objective.num_ar_steps=1"], "fp32"),
    ],
    ids=["S/2", "S/2 autocast", "two copies", "in-context", "DiT"],
)
def test_activations_are_estimated_within_a_fifth(overrides: list[str], precision: str) -> None:
    found, expected = saved_bytes(overrides, precision, rows=2)
    assert expected == pytest.approx(found, rel=0.2)


def test_the_longest_sequence_is_padded_as_the_objective_pads() -> None:
    def length(*overrides: str) -> int:
        return longest_sequence(load_experiment("smoke", ["model.preset=L/2", *overrides]))

    assert length() == 4 + 255 + 256
    assert length("objective.sequence_multiple=64") == 576
    assert length("objective.time_copies=4") == 4 + 255 + 4 * 256
    assert length("objective.ar_decay=0") == 4 + 256
    assert length("objective.num_ar_steps=4") == 4 + 192 + 256


def test_less_is_kept_with_recomputing_and_small_parts() -> None:
    def activations(*overrides: str) -> float:
        experiment = load_experiment("smoke", ["model.preset=L/2", "train.global_batch_size=64", *overrides])
        return estimate(experiment, workers=2, zero_stage=1, precision="fp32").device["activations"]

    assert activations("train.micro_batch_size=8") == pytest.approx(activations() / 4)
    assert activations("train.activation_checkpointing=true") < activations() / 8


def test_offloading_moves_parts_to_the_host() -> None:
    """By hand, for P parameters and 4 workers."""
    names = ["model.preset=B/2", "train.zero_stage=3", "train.precision=bf16_weights", "train.gpus_per_worker=1"]
    whole = estimate(load_experiment("smoke", names), workers=4, zero_stage=3)
    parameters = whole.device["masters"]  # 4 P / 4
    assert whole.host_total == 0
    assert whole.device["parameters"] == parameters / 2
    optimizer = estimate(load_experiment("smoke", [*names, "train.offload=optimizer"]), workers=4, zero_stage=3)
    assert optimizer.host == {"masters": parameters, "moments": 2 * parameters, "averages": parameters}
    assert optimizer.total == pytest.approx(whole.total - 4 * parameters)
    both = estimate(load_experiment("smoke", [*names, "train.offload=parameters"]), workers=4, zero_stage=3)
    assert both.host_total == pytest.approx(4.5 * parameters)
    assert both.total + both.host_total == pytest.approx(whole.total)


def test_without_a_gpu_all_is_in_one_place() -> None:
    found = estimate(load_experiment("smoke", ["train.offload=optimizer"]), workers=1, zero_stage=1)
    assert found.host == {}
    assert {"masters", "moments", "averages"} <= set(found.device)


def test_buckets_are_whole_on_a_gpu_and_can_be_made_smaller() -> None:
    def buckets(*overrides: str) -> float:
        return estimate(load_experiment("smoke", list(overrides)), workers=2, zero_stage=2).device["buckets"]

    gpu = ["train.gpus_per_worker=1", "train.precision=bf16_weights", "train.zero_stage=2"]
    assert buckets(*gpu) == 1e9
    assert buckets(*gpu, "train.deepspeed.zero_optimization.reduce_bucket_size=1000000") == 2e6
    assert buckets() < 1e6
