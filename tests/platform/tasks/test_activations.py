"""Estimates of activations against what autograd keeps, and the length of training sequences by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from tests.platform.config.trees import load_experiment
from tests.platform.tasks.text_process import TRANSFUSION, Engine

from causalfusion import Objective, build_model, draw
from causalfusion_platform.tasks.activations import activation_bytes, longest_sequence, shortest_sequence
from causalfusion_platform.tasks.text_image import TextImage


@contextmanager
def saved(model: torch.nn.Module) -> Iterator[dict[int, tuple[int, torch.Tensor]]]:
    """Collect the storages that autograd keeps, weights left out: address → (bytes, tensor)."""
    kept: dict[int, tuple[int, torch.Tensor]] = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield kept


def saved_bytes(overrides: list[str], precision: str, rows: int) -> tuple[float, float]:
    """What autograd keeps of the longest sequence, and the estimate of it."""
    experiment = load_experiment("smoke", overrides)
    model = build_model(experiment.model)
    settings = (experiment.model, experiment.objective, experiment.diffusion)
    drawn = draw(*settings, seed=0, step=0, samples=range(rows))
    if experiment.objective.num_ar_steps is None:
        drawn = dataclasses.replace(drawn, sizes=[experiment.model.num_tokens - 1, 1])
    size = experiment.model.input_size
    latents = torch.randn(rows, experiment.model.in_channels, size, size)
    objective = Objective(model, experiment.objective, experiment.diffusion)
    with (
        saved(model) as kept,
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
def test_activations_are_estimated_within_a_tenth(overrides: list[str], precision: str) -> None:
    found, expected = saved_bytes(overrides, precision, rows=2)
    assert expected == pytest.approx(found, rel=0.1)


def text_bytes(share: float, *more: str, rows: int) -> tuple[float, float]:
    """The same for texts of the largest length, of which `share` describe their images."""
    experiment = load_experiment(
        "text",
        [
            "model.preset=S/2",
            "model.depth=3",
            "model.text.vocabulary=4000",
            "model.text.max_tokens=35",
            f"objective.text.share={share}",
            *more,
        ],
    )
    task = TextImage(experiment)
    model = task.build_model()
    step = task.objective(model).step(task.example_batch(rows), 0)
    if experiment.objective.num_ar_steps is None:
        longest = dataclasses.replace(step.drawn, sizes=[experiment.model.num_tokens - 1, 1])
        step = dataclasses.replace(step, drawn=longest)
    with saved(model) as kept:
        step.loss(Engine(model), step.part(slice(0, rows)), step.totals)
    return sum(count for count, _ in kept.values()), task.activation_bytes(rows, "fp32")


@pytest.mark.parametrize(
    ("share", "more", "rows"),
    [(1.0, (), 2), (0.0, (), 2), (0.5, (), 2), (0.1, (), 1), (0.5, TRANSFUSION, 2)],
    ids=["described", "drawn", "both", "one row", "transfusion"],
)
def test_those_of_text_too(share: float, more: tuple[str, ...], rows: int) -> None:
    """One row takes two sequences: the model also runs on the other kind, with weight 0."""
    found, expected = text_bytes(share, *more, rows=rows)
    assert expected == pytest.approx(found, rel=0.1)


def test_the_longest_sequence_is_padded_as_the_objective_pads() -> None:
    def length(*overrides: str) -> int:
        return longest_sequence(load_experiment("smoke", ["model.preset=L/2", *overrides]))

    assert length() == 4 + 255 + 256
    assert length("objective.sequence_multiple=64") == 576
    assert length("objective.time_copies=4") == 4 + 255 + 4 * 256
    assert length("objective.ar_decay=0") == 4 + 256
    assert length("objective.num_ar_steps=4") == 4 + 192 + 256


def test_sequences_of_text() -> None:
    """16 image tokens and up to 16 of text: all clean ones are there for a text behind them."""

    def lengths(*overrides: str) -> tuple[int, int]:
        experiment = load_experiment("text", overrides)
        return shortest_sequence(experiment), longest_sequence(experiment)

    assert lengths() == (16 + 16, 16 + 16 + 16)
    assert lengths("objective.text.share=0.0") == (16 + 16, 16 + 15 + 16)
    assert lengths("objective.text.share=1.0") == (16 + 16 + 16, 16 + 16 + 16)
    assert lengths("objective.time_copies=2") == (16 + 32, 16 + 16 + 32)
    assert lengths(*TRANSFUSION) == (16 + 16, 16 + 16)
