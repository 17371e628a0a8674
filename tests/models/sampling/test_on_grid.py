"""A model on a grid that it was not trained on: shared weights, and positions that go on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from tests.models.random_models import random_dit

from causalfusion import CausalFusion, CausalFusionConfig
from causalfusion.attention.plan import AttentionPlan
from causalfusion.embed import sinusoids_2d
from causalfusion.factorization.sequence import lay_out
from causalfusion.patches import PatchModel

if TYPE_CHECKING:
    from tests.models.conftest import NaiveTransformer

ModelMaker = Callable[..., CausalFusion]


@pytest.mark.parametrize(("rows", "columns"), [(6, 3), (3, 6), (7, 9), (2, 3)])
def test_positions_agree_on_the_common_part(make_model: ModelMaker, rows: int, columns: int) -> None:
    """A patch at row y and column x is the same patch on both grids."""
    model = make_model()
    before = model.positions.clone()
    other = model.on_grid(rows, columns)
    assert other.grid == (rows, columns)
    assert other.positions.dtype == torch.float64
    assert torch.equal(other.positions, sinusoids_2d(16, rows, columns).double())
    trained, wider = before.view(4, 4, 16), other.positions.view(rows, columns, 16)
    assert torch.equal(wider[:4, :4], trained[:rows, :columns])
    assert torch.equal(model.positions, before)
    assert model.grid == (4, 4)


def test_weights_are_shared_and_the_model_stays_as_it_was(make_model: ModelMaker) -> None:
    """Nothing is copied: what is trained on one grid is there on the other."""
    model = make_model()
    names = list(model.state_dict())
    other = model.on_grid(5, 3)
    assert type(other) is CausalFusion
    assert other is not model
    own, others = dict(model.named_parameters()), dict(other.named_parameters())
    assert own.keys() == others.keys()
    for name, parameter in own.items():
        assert others[name] is parameter
    assert list(model.state_dict()) == list(other.state_dict()) == names
    with torch.no_grad():
        model.head.weight.mul_(2)
    assert torch.equal(other.head.weight, model.head.weight)


@torch.no_grad()
def test_a_larger_grid_is_a_larger_model_with_the_same_weights(make_model: ModelMaker) -> None:
    """Bit for bit, for both kinds of models; the smaller grid's outputs do not change."""
    generator = torch.Generator().manual_seed(0)
    large, small = (torch.randn(2, n, 4, generator=generator, dtype=torch.float64) for n in (36, 16))
    t, labels = torch.tensor([3, 700]), torch.tensor([0, 2])
    pairs: list[tuple[PatchModel, PatchModel]] = [
        (make_model(), make_model(input_size=12)),
        (random_dit(input_size=8), random_dit(input_size=12)),
    ]
    for model, trained_larger in pairs:

        def predict(model: PatchModel, noised: torch.Tensor) -> torch.Tensor:
            count = noised.shape[1]
            plan = AttentionPlan.of(lay_out([count], class_tokens=2))
            out: torch.Tensor = model(noised, noised[:, :0], torch.arange(count).expand(2, -1), t, labels, plan)
            return out

        before = predict(model, small)
        assert torch.equal(predict(model.on_grid(6, 6), large), predict(trained_larger, large))
        assert torch.equal(predict(model, small), before)


@torch.no_grad()
def test_a_grid_that_is_not_square(make_model: ModelMaker, naive: type[NaiveTransformer]) -> None:
    """3 rows of 5 patches through the training pass, against loops, and through the cut into patches."""
    model = make_model().on_grid(3, 5)
    latents = torch.randn(1, 1, 6, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noised = model.patchify(latents)
    assert noised.shape == (1, 15, 4)
    assert torch.equal(model.unpatchify(noised), latents)
    arguments = noised, noised[:, :0], torch.arange(15)[None], torch.tensor([9]), torch.tensor([1])
    found = model(*arguments, AttentionPlan.of(lay_out([15], class_tokens=2)))[0].numpy()
    reference = naive(model)
    tokens = [reference.class_tokens(1), reference.image_tokens(noised[0].numpy(), list(range(15)), 9)]
    visible = [[True] * 2 + [False] * 15] * 2 + [[True] * 17] * 15
    expected = reference.predict(reference.run_blocks(np.concatenate(tokens), visible)[2:])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)


def test_learned_positions_are_refused(make_config: Callable[..., CausalFusionConfig]) -> None:
    model = CausalFusion(make_config(position_embedding="learnable"))
    with pytest.raises(ValueError, match=r"learned positions end at the 4×4 grid of training.*reach a 4×6 grid"):
        model.on_grid(4, 6)
