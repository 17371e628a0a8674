"""Estimates of activations against what autograd keeps, and the length of training sequences by hand."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tests.platform.config.trees import load_experiment

from causalfusion import Objective, build_model, draw
from causalfusion_platform.tasks.activations import activation_bytes, longest_sequence


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
