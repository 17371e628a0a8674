"""Sample i of a request is the same whoever generates it."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from causalfusion import CausalFusion, DiffusionConfig, SamplingConfig, sample
from causalfusion_platform.sampling.generate import Request, generate, generate_together, labels_in_turn

REQUEST = Request(
    labels=torch.tensor([3, 1, 4, 1, 5, 9, 2]),
    sampling=SamplingConfig(num_inference_steps=3, num_ar_steps=2, guidance_scale=1.5),
    diffusion=DiffusionConfig(num_train_steps=100),
    seed=11,
    bf16=False,
)
ROUNDING = 1e-6  # what results in fp32 may differ by; the products are in double


@pytest.fixture(scope="module")
def whole(random_model: CausalFusion) -> Tensor:
    """Return all samples of the request, generated at once."""
    return generate(random_model, REQUEST, list(range(7)))


def test_labels_in_turn() -> None:
    assert labels_in_turn(7, 3).tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert labels_in_turn(2, 10).tolist() == [0, 1]
    assert labels_in_turn(0, 10).tolist() == []
    counts = torch.bincount(labels_in_turn(200, 10))
    assert counts.tolist() == [20] * 10


def test_a_request_is_what_the_model_samples(random_model: CausalFusion, whole: Tensor) -> None:
    expected = sample(random_model, REQUEST.labels, REQUEST.sampling, REQUEST.diffusion, seed=11)
    assert torch.equal(whole, expected)
    assert whole.shape == (7, 1, 8, 8)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 100])
def test_batches_do_not_matter(random_model: CausalFusion, whole: Tensor, batch_size: int) -> None:
    parts = generate(random_model, dataclasses.replace(REQUEST, batch_size=batch_size), list(range(7)))
    torch.testing.assert_close(parts, whole, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("indices", [[0], [5, 1, 3], [6, 6], [1, 3]])
def test_neighbours_do_not_matter(random_model: CausalFusion, whole: Tensor, indices: list[int]) -> None:
    """Samples 1 and 3 have the same class, and differ all the same."""
    part = generate(random_model, REQUEST, indices)
    torch.testing.assert_close(part, whole[indices], rtol=0, atol=ROUNDING)
    assert (whole[1] - whole[3]).abs().max() > 0.1


def test_no_samples(random_model: CausalFusion) -> None:
    assert generate(random_model, REQUEST, []).shape == (0, 1, 8, 8)


def test_the_seed_and_the_labels_decide(random_model: CausalFusion, whole: Tensor) -> None:
    other_seed = generate(random_model, dataclasses.replace(REQUEST, seed=12), [0, 1])
    assert (other_seed - whole[:2]).abs().amax(dim=(1, 2, 3)).min() > 0.1
    assert isinstance(REQUEST.labels, Tensor)
    labels = REQUEST.labels.clone()
    labels[0] = 8
    other_label = generate(random_model, dataclasses.replace(REQUEST, labels=labels), [0, 1])
    assert (other_label[0] - whole[0]).abs().max() > 0.01
    torch.testing.assert_close(other_label[1], whole[1], rtol=0, atol=ROUNDING)


def test_bf16_is_near_and_returns_fp32(random_model: CausalFusion) -> None:
    model = CausalFusion(random_model.config)
    model.load_state_dict(random_model.state_dict())
    request = dataclasses.replace(REQUEST, sampling=SamplingConfig(num_inference_steps=2))
    single = generate(model, request, [0, 1])
    half = generate(model, dataclasses.replace(request, bf16=True), [0, 1])
    assert half.dtype == torch.float32
    assert 1e-4 < (half - single).abs().max() < 0.5


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_ranks_together_generate_the_same(
    monkeypatch: pytest.MonkeyPatch, random_model: CausalFusion, whole: Tensor, world: int
) -> None:
    """Each rank is run in turn, with the exchange between them replaced; with 8, one rank has nothing to do."""
    shares = [generate(random_model, REQUEST, list(range(7))[rank::world]) for rank in range(world)]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1

    def exchange(parts: list[Any], mine: Tensor) -> None:
        assert torch.equal(mine, shares[torch.distributed.get_rank()])
        parts[:] = shares

    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: world)
    monkeypatch.setattr(torch.distributed, "all_gather_object", exchange)
    for rank in range(world):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        together = generate_together(random_model, REQUEST)
        torch.testing.assert_close(together.to(whole.dtype), whole, rtol=0, atol=ROUNDING)


def test_bf16_is_a_copy_in_bf16_without_autocast(random_model: CausalFusion) -> None:
    """Bit for bit what a model that was converted as a whole samples. The given model stays in its own type."""
    dtype = random_model.dtype
    half = copy.deepcopy(random_model).bfloat16()
    expected = sample(half, REQUEST.labels, REQUEST.sampling, REQUEST.diffusion, seed=11)
    assert torch.equal(generate(random_model, dataclasses.replace(REQUEST, bf16=True), list(range(7))), expected)
    assert random_model.dtype == dtype
