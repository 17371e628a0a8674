"""Estimate of memory in `make bench-gpu`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.benchmarks.gpu import memory, training
from tests.benchmarks.gpu.__main__ import TINY
from tests.benchmarks.gpu.report import Report

from causalfusion import CausalFusion

CONFIG = TINY.config("L")
WEIGHTS = sum(parameter.numel() for parameter in CausalFusion(CONFIG).parameters())


@pytest.mark.parametrize(
    ("activations", "expected"),
    [
        (0, 20 * WEIGHTS),  # gradients are larger
        (1e9, 16 * WEIGHTS + 1e9 + 0.25e9),  # half of what one of 2 blocks keeps
    ],
)
def test_the_larger_of_gradients_and_activations_counts(
    monkeypatch: pytest.MonkeyPatch, activations: float, expected: float
) -> None:
    asked: list[Any] = []

    def kept(config: object, lengths: Any, **rest: Any) -> float:
        asked.append((lengths.context, lengths.noised, rest["rows"], rest["device_type"]))
        return activations

    monkeypatch.setattr(memory, "activation_bytes", kept)
    assert memory.estimate(CONFIG, batch=3, length=96, form="split") == pytest.approx(expected)
    assert asked == [(32, 64, 3, "cuda")]


def test_the_batch_is_halved_until_it_fits() -> None:
    whole = memory.estimate(CONFIG, batch=64, length=144, form="split")
    quarter = memory.estimate(CONFIG, batch=16, length=144, form="split")
    options: dict[str, Any] = {"batch": 64, "length": 144, "form": "split"}
    assert memory.fitting_batch(CONFIG, **options, memory=whole / 0.9 + 1) == 64
    assert memory.fitting_batch(CONFIG, **options, memory=quarter / 0.9 + 1) == 16
    with pytest.raises(ValueError, match="one image does not fit"):
        memory.fitting_batch(CONFIG, **options, memory=1)


@pytest.mark.parametrize(("peak", "status"), [(1.05, 0), (0.8, 1), (1.2, 1)])
def test_a_peak_far_from_the_estimate_ends_with_1(
    monkeypatch: pytest.MonkeyPatch, peak: float, status: int
) -> None:
    expected = memory.estimate(CONFIG, batch=TINY.size.batch, length=144, form="split")
    monkeypatch.setattr(memory, "peak", lambda device: peak * expected)
    report = Report(show=lambda _: None)
    training.eager_memory(report, "L", CONFIG, TINY.size, torch.device("cpu"))
    assert report.status == status
