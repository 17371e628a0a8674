"""The sequences of zeros that compiled blocks are made ready with, against the lengths that training can have."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from causalfusion import CausalFusionConfig, DiTConfig, ModelConfig, ObjectiveConfig, TextConfig, build_model
from causalfusion.lengths import lengths
from causalfusion_platform.train.warm_up import warm_up

SIZES: dict[str, Any] = {"input_size": 8, "in_channels": 1, "hidden_size": 8, "depth": 2, "num_heads": 2}
CAUSAL = CausalFusionConfig(**SIZES, num_classes=3, class_tokens=2)
TEXT = dataclasses.replace(CAUSAL, class_tokens=0, text=TextConfig(vocabulary=13, max_tokens=6))
TRANSFUSION = dataclasses.replace(TEXT, architecture="transfusion")
SHARE: dict[str, Any] = {"share": 0.5}
CASES: list[tuple[ModelConfig, dict[str, Any]]] = [
    (CAUSAL, {"time_copies": 3, "time_sampling": "per_step", "sequence_multiple": 16}),
    (dataclasses.replace(CAUSAL, time_conditioning="token"), {"sequence_multiple": 16}),
    (TEXT, {"text": SHARE, "time_copies": 2, "sequence_multiple": 16}),
    (TEXT, {"text": SHARE}),
    (TRANSFUSION, {"text": SHARE, "num_ar_steps": 1, "ar_weight": 1.0}),
    (DiTConfig(**SIZES, num_classes=3), {"num_ar_steps": 1}),
]


@pytest.mark.parametrize(("model", "options"), CASES)
def test_each_length_is_run_and_nothing_is_left_behind(model: ModelConfig, options: dict[str, Any]) -> None:
    """Of many lengths the shortest and the longest are among those that are run. No weight gets a gradient."""
    config, calls, run = ObjectiveConfig(**options), [], list[int]()
    module = build_model(model)
    module.get_submodule("blocks.0").register_forward_pre_hook(lambda _, x: run.append(x[0].shape[1]))
    state = torch.get_rng_state()
    count = warm_up(module, module, model, config, 3, torch.device("cpu"), lambda: calls.append(0))
    assert len(run) == len(calls) == count
    expected = lengths(model, config, "cpu")
    if len(expected) <= 16:
        assert run == expected
    else:
        assert {expected[0], expected[-1]} <= set(run) <= set(expected)
        assert count <= 16
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in module.parameters())
