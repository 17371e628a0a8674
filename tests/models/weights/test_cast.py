"""Copies of a model with weights of another type, against PyTorch's own conversion of a whole model."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from tests.models.random_models import random_dit

from causalfusion import CausalFusion, DiffusionConfig, DiT, SamplingConfig, TextConfig, sample
from causalfusion.weights.cast import cast_copy

ModelMaker = Callable[..., CausalFusion]


@pytest.mark.parametrize("dit", [False, True])
def test_it_samples_as_a_model_that_was_converted_does(make_model: ModelMaker, dit: bool) -> None:
    """Bit for bit, and the model itself stays as it was."""
    model: CausalFusion | DiT = random_dit() if dit else make_model()
    before = copy.deepcopy(model.state_dict())
    config = SamplingConfig(num_ar_steps=1 if dit else 3, num_inference_steps=3, guidance_scale=2.0)
    labels, diffusion = torch.tensor([0, 2]), DiffusionConfig()
    half = cast_copy(model, torch.bfloat16)
    found = sample(half, labels, config, diffusion, seed=0)
    assert found.dtype == torch.float32
    after = model.state_dict()
    assert all(torch.equal(value, after[key]) and value.dtype == after[key].dtype for key, value in before.items())
    assert torch.equal(found, sample(copy.deepcopy(model).bfloat16(), labels, config, diffusion, seed=0))


def test_the_copy_is_for_inference_and_shares_nothing(make_model: ModelMaker) -> None:
    model = make_model()
    half = cast_copy(model, torch.bfloat16)
    assert {tensor.dtype for tensor in (*half.parameters(), *half.buffers())} == {torch.bfloat16}
    assert not any(weight.requires_grad for weight in half.parameters())
    assert half.state_dict().keys() == model.state_dict().keys()
    same = cast_copy(model, model.dtype)
    places = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    assert places.isdisjoint(tensor.data_ptr() for tensor in (*same.parameters(), *same.buffers()))


def test_tied_tables_stay_tied_and_other_grids_stay(make_model: ModelMaker) -> None:
    model = make_model(text=TextConfig(vocabulary=11)).on_grid(4, 6)
    half = cast_copy(model, torch.bfloat16)
    assert half.grid == (4, 6)
    assert torch.equal(half.positions, model.positions.bfloat16())
    assert sum(weight.numel() for weight in half.parameters()) == sum(
        weight.numel() for weight in model.parameters()
    )
