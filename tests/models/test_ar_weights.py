"""The loss weights along the AR axis (Section 5, Table 3c): paper's and release's."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from causalfusion import CausalFusion, DiffusionConfig, Objective, ObjectiveConfig
from causalfusion.objective import WeightAxis, WeightShape, ar_weights

if TYPE_CHECKING:
    from tests.models.conftest import TrainingExample

# Steps of 2, 2 and 4 tokens with λ = 2; then steps of 1, 2, 2 and 3 tokens with λ = 3. By hand:
# along the steps, the way goes 0, 1/2, 1 and 0, 1/3, 2/3, 1; along the tokens 0, 1/4, 1/2 and 0, 1/8, 3/8, 5/8.
# The cosine of π/4 is 0.70711, of π/8 0.92388, and of 3π/8 = −cos(5π/8) 0.38268.
BY_HAND: list[tuple[WeightAxis, WeightShape, list[float], list[float]]] = [
    ("step", "linear", [2, 1.5, 1], [3, 7 / 3, 5 / 3, 1]),
    ("step", "cosine", [2, 1.5, 1], [3, 2.5, 1.5, 1]),
    ("token", "linear", [2, 1.75, 1.5], [3, 2.75, 2.25, 1.75]),
    ("token", "cosine", [2, 1.853553, 1.5], [3, 2.923880, 2.382683, 1.617317]),
]


@pytest.mark.parametrize(("along", "shape", "three", "four"), BY_HAND)
def test_weights_by_hand(along: WeightAxis, shape: WeightShape, three: list[float], four: list[float]) -> None:
    """Each token has the weight of its step."""
    found = ar_weights([2, 2, 4], 2.0, along, shape)
    np.testing.assert_allclose(found.numpy(), np.repeat(three, [2, 2, 4]), rtol=0, atol=1e-6)
    found = ar_weights([1, 2, 2, 3], 3.0, along, shape)
    np.testing.assert_allclose(found.numpy(), np.repeat(four, [1, 2, 2, 3]), rtol=0, atol=1e-6)
    assert found.dtype == torch.float32


@pytest.mark.parametrize("along", get_args(WeightAxis))
@pytest.mark.parametrize("shape", get_args(WeightShape))
@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=8), ar_weight=st.floats(1, 5))
def test_weights_against_the_law(along: WeightAxis, shape: WeightShape, sizes: list[int], ar_weight: float) -> None:
    """Linear: λ − (λ − 1) f. Cosine: cos(π f) (λ − 1)/2 + (λ + 1)/2."""
    expected = []
    for step, size in enumerate(sizes):
        if along == "token":
            way = sum(sizes[:step]) / sum(sizes)
        else:
            way = step / (len(sizes) - 1) if len(sizes) > 1 else 0.0
        if shape == "linear":
            weight = ar_weight - (ar_weight - 1) * way
        else:
            weight = math.cos(math.pi * way) * (ar_weight - 1) / 2 + (ar_weight + 1) / 2
        expected += [weight] * size
    np.testing.assert_allclose(ar_weights(sizes, ar_weight, along, shape).numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("along", get_args(WeightAxis))
@pytest.mark.parametrize("shape", get_args(WeightShape))
def test_one_step_has_the_first_steps_weight(along: WeightAxis, shape: WeightShape) -> None:
    """With S = 1 all readings give λ; with λ = 1 nothing is weighted."""
    assert ar_weights([4], 2.5, along, shape).tolist() == [2.5] * 4
    assert ar_weights([1, 3, 2], 1.0, along, shape).tolist() == [1.0] * 6


def test_the_default_is_the_papers() -> None:
    assert ar_weights([1, 2, 2, 3], 3.0).tolist() == ar_weights([1, 2, 2, 3], 3.0, "step", "linear").tolist()


@pytest.mark.parametrize(("along", "shape", "three", "four"), BY_HAND)
def test_the_objective_takes_the_configured_weights(
    make_model: Callable[..., CausalFusion],
    make_example: Callable[..., TrainingExample],
    along: WeightAxis,
    shape: WeightShape,
    three: list[float],
    four: list[float],
) -> None:
    """The loss is the mean of the weight times the error, over an image of 2, 4, 4 and 6 tokens."""
    model = make_model()
    options = ObjectiveConfig(ar_weight=3.0, ar_weight_along=along, ar_weight_shape=shape)

    def zero(*inputs: Any, **named: Any) -> Tensor:
        noised: Tensor = inputs[0]
        return torch.zeros_like(noised)

    # Twice the sizes of the example by hand are at the same places along both axes.
    loss = Objective(model, options, DiffusionConfig())(zero, *make_example(model.config, [2, 4, 4, 6]))
    weighted = (np.repeat(four, [2, 4, 4, 6]) * loss.error_L.numpy()).mean()
    assert float(loss.weighted) == pytest.approx(weighted, rel=1e-6)
    assert len(set(loss.error_L.tolist())) == 16
