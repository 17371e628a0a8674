"""A worker's share: the model's own samples, decoded, in batches that do not depend on the parts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.platform.data.tiny_vaes import new_kl
from tests.platform.sampling.plans import make_plan
from torch import Tensor

from causalfusion import build_model, load_weights, preset, sample, save_weights
from causalfusion_platform.config.errors import UserError
from causalfusion_platform.data.autoencoder import open_encoder
from causalfusion_platform.data.manifest import AutoencoderId, sha256_of
from causalfusion_platform.sampling.part_maker import PartMaker
from causalfusion_platform.sampling.sample_set import SamplePlan


@pytest.fixture
def plan(weights: Path) -> SamplePlan:
    """Ten samples in batches of four."""
    return plan_of(weights, batch_size=4)


def plan_of(weights: Path, **changes: Any) -> SamplePlan:
    return make_plan(weights=weights, weights_sha256=sha256_of(weights / "model.safetensors"), **changes)


def test_parts_are_the_models_samples_as_bytes(plan: SamplePlan) -> None:
    """Each batch of four by itself, with the numbers and labels that its samples have in the whole set."""
    maker, model = PartMaker(plan, "cpu"), load_weights(plan.weights)
    found = np.concatenate([maker.make(plan, part) for part in range(plan.num_parts)])
    expected = []
    for start in (0, 4, 8):
        numbers = list(range(start, min(start + 4, 10)))
        labels = torch.tensor([number % 10 for number in numbers])
        latents = sample(model, labels, plan.sampling, plan.diffusion, seed=11, indices=numbers)
        expected.append(np.round(np.clip((latents.numpy() + 1) / 2 * 255, 0, 255)).astype(np.uint8))
    gray = np.concatenate(expected).transpose(0, 2, 3, 1)
    assert found.shape == (10, 8, 8, 3)
    assert np.array_equal(found, np.broadcast_to(gray, found.shape))
    assert len({image.tobytes() for image in found}) == 10


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """What goes through the model together: first sample, how many, and on how many threads."""
    seen: list[tuple[int, int, int]] = []

    def watched(model: Any, labels: Tensor, *arguments: Any, indices: list[int], **rest: Any) -> Tensor:
        assert indices == list(range(indices[0], indices[0] + len(labels)))
        seen.append((indices[0], len(labels), torch.get_num_threads()))
        return sample(model, labels, *arguments, indices=indices, **rest)

    monkeypatch.setattr("causalfusion_platform.sampling.generate.sample", watched)
    return seen


def test_parts_do_not_change_the_batches(
    plan: SamplePlan, batches: list[tuple[int, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    maker = PartMaker(plan, "cpu")
    small = np.concatenate([maker.make(plan, part) for part in range(plan.num_parts)])
    assert [(first, count) for first, count, _ in batches] == [(0, 4), (4, 4), (8, 2)]
    batches.clear()
    monkeypatch.setattr(SamplePlan, "part_size", 8)
    assert plan.num_parts == 2
    large = np.concatenate([maker.make(plan, part) for part in (1, 0)][::-1])
    assert [(first, count) for first, count, _ in batches] == [(8, 2), (0, 4), (4, 4)]
    assert np.array_equal(large, small)


def test_threads_of_the_process_do_not_matter(plan: SamplePlan, batches: list[tuple[int, int, int]]) -> None:
    maker, before = PartMaker(plan, "cpu"), torch.get_num_threads()
    try:
        for threads in (2, 1):
            torch.set_num_threads(threads)
            maker.make(plan, 0)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert [threads for _, _, threads in batches] == [1, 1]


def test_rules_of_the_plan_decide(plan: SamplePlan) -> None:
    maker = PartMaker(plan, "cpu")
    first = maker.make(plan, 0)
    for change in (
        {"seed": 12},
        {"classes": (5,)},
        {"precision": "bf16"},
        {"sampling": dataclasses.replace(plan.sampling, guidance_scale=4.0)},
        {"diffusion": dataclasses.replace(plan.diffusion, num_train_steps=50)},
    ):
        other = plan.model_copy(update=change)
        assert maker.serves(other)
        assert not np.array_equal(maker.make(other, 0), first), change


def test_images_are_the_autoencoders(tmp_path: Path) -> None:
    """Latents over the scale through the decoder, one after the other; 8×8 latents are 64×64 images."""
    torch.manual_seed(0)
    model = build_model(preset("tiny", in_channels=4))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    save_weights(tmp_path / "weights", model.config, model.state_dict())
    vae = new_kl()
    vae.save_pretrained(tmp_path / "vae")
    coder = open_encoder(tmp_path / "vae")
    identity = AutoencoderId(name=coder.name, scale=coder.scale, weights_sha256=coder.weights_sha256)
    plan = plan_of(
        tmp_path / "weights",
        model=model.config,
        vae=str(tmp_path / "vae"),
        autoencoder=identity,
        image_size=64,
        num=2,
        uint8="truncate",
    )
    found = PartMaker(plan, "cpu").make(plan, 0)
    latents = sample(model.eval(), torch.tensor([0, 1]), plan.sampling, plan.diffusion, seed=11)
    with torch.no_grad():
        decoded = torch.cat([vae.decode(latent[None] / 0.5).sample for latent in latents]).numpy()
    # A decoder's sums round differently with other threads: a byte may be the next one where the fraction is near.
    expected = np.clip(127.5 * decoded.transpose(0, 2, 3, 1) + 128, 0, 255)
    assert found.shape == (2, 64, 64, 3)
    assert np.abs(found + 0.5 - expected).max() < 0.5 + 1e-3
    other = plan.model_copy(update={"autoencoder": identity.model_copy(update={"weights_sha256": "0" * 64})})
    with pytest.raises(UserError, match=r"autoencoder .*vae on the machine of a worker is another one"):
        PartMaker(other, "cpu")


def test_other_weights_than_the_plans_are_refused(plan: SamplePlan, tmp_path: Path) -> None:
    maker = PartMaker(plan, "cpu")
    for other in (
        plan.model_copy(update={"weights_sha256": "0" * 64}),
        plan.model_copy(update={"weights": tmp_path, "weights_sha256": "0" * 64}),
    ):
        assert not maker.serves(other)
        with pytest.raises(UserError, match=r"model\.safetensors is not there, or another file, on the machine"):
            PartMaker(other, "cpu")


def test_samples_that_are_no_numbers(tmp_path: Path) -> None:
    """The output bias is NaN for every sample of class 1 on: the class table is."""
    model = build_model(preset("tiny"))
    state = model.state_dict()
    tables = [name for name, tensor in state.items() if tensor.ndim == 2 and tensor.shape[0] == 11]
    assert len(tables) == 1
    state[tables[0]][3] = torch.nan
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    save_weights(tmp_path, model.config, state)
    plan = plan_of(tmp_path, classes=(0, 1, 3), batch_size=8, num=8)
    with pytest.raises(UserError, match=r"sample 2 of the weights in .* has NaN or infinite numbers"):
        PartMaker(plan, "cpu").make(plan, 0)
