"""The moving average of the weights, against its closed form."""

from __future__ import annotations

import pytest
import torch

from causalfusion import PRESETS, Model, build_model
from causalfusion_platform.train.ema import Ema


def set_all(model: Model, value: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)


@pytest.mark.parametrize("warmup", [False, True])
def test_the_average_follows_its_rule(warmup: bool) -> None:
    model = build_model(PRESETS["tiny"])
    set_all(model, 1.0)
    ema = Ema(model, 0.9, warmup=warmup)
    expected = 1.0
    for step in range(1, 101):
        value = (-1.0) ** step * step
        set_all(model, value)
        ema.update(step)
        decay = min(0.9, (1 + step) / (10 + step)) if warmup else 0.9
        expected = decay * expected + (1 - decay) * value
        average = ema.full_state()["class_tokens.positions"]
        torch.testing.assert_close(average, torch.full_like(average, expected), rtol=1e-5, atol=1e-5)
    state = ema.full_state()
    assert set(state) == {name for name, _ in model.named_parameters()}
    for tensor in state.values():
        torch.testing.assert_close(tensor, torch.full_like(tensor, expected), rtol=1e-5, atol=1e-5)


def test_the_average_is_kept_in_fp32() -> None:
    """In bf16 a decay of 0.9999 would never move it."""
    model = build_model(PRESETS["tiny"]).bfloat16()
    set_all(model, 1.0)
    ema = Ema(model, 0.9999, warmup=False)
    set_all(model, 2.0)
    for step in range(1, 101):
        ema.update(step)
    for tensor in ema.full_state().values():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, torch.full_like(tensor, 2 - 0.9999**100), rtol=1e-5, atol=0)


def test_the_average_is_apart_from_the_weights() -> None:
    model = build_model(PRESETS["tiny"])
    set_all(model, 1.0)
    ema = Ema(model, 0.5, warmup=False)
    set_all(model, 5.0)
    state = ema.full_state()
    assert all(bool((tensor == 1).all()) for tensor in state.values())
    for tensor in state.values():
        tensor.zero_()
    assert all(bool((tensor == 1).all()) for tensor in ema.full_state().values())
    ema.update(1)
    assert all(bool((parameter == 5).all()) for parameter in model.parameters())


def test_a_saved_average_continues() -> None:
    model = build_model(PRESETS["tiny"])
    one, other = Ema(model, 0.9, warmup=True), Ema(build_model(PRESETS["tiny"]), 0.9, warmup=True)
    other.load(one.full_state())
    for name, tensor in one.full_state().items():
        assert torch.equal(other.full_state()[name], tensor)
    assert not one.sharded
