"""The sampler: settings and labels as people write them, samples and edits as the model package makes them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from causalfusion import (
    CausalFusion,
    DiffusionConfig,
    SamplingConfig,
    build_model,
    edit,
    keep_region,
    preset,
    sample,
    save_weights,
)
from causalfusion_platform.config.errors import UserError
from causalfusion_platform.sampling.interactive import InteractiveSampler, parse_settings

FEW = SamplingConfig(num_inference_steps=3, num_ar_steps=2, guidance_scale=1.5)
PROCESS = DiffusionConfig(num_train_steps=100)


def refusal(weights: Path, *settings: str) -> str:
    with pytest.raises(UserError) as caught:
        InteractiveSampler.open(weights, FEW, settings, None)
    return str(caught.value)


# Settings


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ([], FEW),
        (["guidance_scale=4"], dataclasses.replace(FEW, guidance_scale=4.0)),
        (["sampling.num_ar_steps=4", "sampler=ddim"], dataclasses.replace(FEW, num_ar_steps=4, sampler="ddim")),
        (["num_inference_steps=[4, 8]"], dataclasses.replace(FEW, num_inference_steps=(4, 8))),
        (["step_sizes=[5,4,7]"], dataclasses.replace(FEW, num_ar_steps=1, step_sizes=(5, 4, 7))),
        (["guidance_interval=[0,50]"], dataclasses.replace(FEW, guidance_interval=(0, 50))),
        (["guidance_interval=null", "num_ar_steps=1"], dataclasses.replace(FEW, num_ar_steps=1)),
        (["num_ar_steps=8", "num_ar_steps=1"], dataclasses.replace(FEW, num_ar_steps=1)),
    ],
)
def test_settings_change_the_defaults(settings: list[str], expected: SamplingConfig) -> None:
    assert parse_settings(settings, FEW) == expected


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ("steps=3", ["setting 'steps=3' is not KEY=VALUE", "num_ar_steps, step_sizes, num_inference_steps"]),
        ("num_ar_steps", ["setting 'num_ar_steps' is not KEY=VALUE"]),
        ("model.depth=3", ["setting 'model.depth=3' is not KEY=VALUE"]),
        ("num_ar_steps=four", ["num_ar_steps=four", "num_ar_steps: ", "integer"]),
        ("sampler=edm", ["sampler: ", "'ddpm', 'ddim', 'dpm-solver++' or 'unipc'"]),
        ("num_ar_steps=0", ["num_ar_steps must be at least 1, got 0"]),
        ("num_inference_steps=[4", ["num_inference_steps=[4"]),
    ],
)
def test_settings_that_are_wrong(weights: Path, setting: str, parts: list[str]) -> None:
    message = refusal(weights, setting)
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("setting", "part"),
    [
        ("num_ar_steps=17", "17"),
        ("step_sizes=[5, 12]", "add up to 16, got [5, 12]"),
        ("num_inference_steps=[4, 8, 16]", "names 3 AR steps, but there are 2"),
        ("num_inference_steps=101", "100"),
    ],
)
def test_settings_that_do_not_fit_the_model(weights: Path, setting: str, part: str) -> None:
    with pytest.raises(UserError) as caught:
        InteractiveSampler.open(weights, FEW, [setting], None).sample([0], 1, 0)
    assert part in str(caught.value)


def test_every_diffusion_step_is_counted(weights: Path) -> None:
    sampler = InteractiveSampler.open(weights, FEW, ["num_inference_steps=[3,4]"], None)
    shown: list[tuple[int, int]] = []
    latents = sampler.originals("3", 65, 0, lambda *counts: shown.append(counts))  # 64 at a time
    assert shown == [(step, 14) for step in range(1, 15)]
    shown.clear()
    sampler.edit(latents[:2], "top", [0, 1], 0, lambda *counts: shown.append(counts))
    assert shown == [(step, 7) for step in range(1, 8)]
    shown.clear()
    sampler.sample([1], 1, 0, lambda *counts: shown.append(counts))
    assert len(shown) == 7


def test_a_block_that_does_not_divide_the_grid(weights: Path) -> None:
    sampler = InteractiveSampler.open(weights, FEW, ["patch_order=dilated", "order_block=3"], None)
    with pytest.raises(UserError, match="3"):
        sampler.sample([0], 1, 0)
    with pytest.raises(UserError, match="3"):
        sampler.edit(torch.zeros(1, 1, 8, 8), "top", [0], 0)


def test_a_dit_has_one_ar_step(own_folder: Path) -> None:
    model = build_model(preset("digits-dit", hidden_size=8, num_heads=2, depth=1))
    save_weights(own_folder, model.config, model.state_dict())
    assert "a DiT has no AR steps: num_ar_steps must be 1, got 2" in refusal(own_folder)
    sampler = InteractiveSampler.open(own_folder, FEW, ["num_ar_steps=1"], None)
    assert sampler.sample([3], 2, 0).shape == (2, 1, 8, 8)
    with pytest.raises(UserError, match="DiT has no AR steps and takes no clean tokens"):
        sampler.edit(torch.zeros(1, 1, 8, 8), "top", [0], 0)


def test_what_the_settings_are_called(sampler: InteractiveSampler, weights: Path) -> None:
    assert sampler.describe() == "S = 2 AR step(s) of 16 tokens, 3 ddpm steps each, guidance 1.5"
    both = InteractiveSampler.open(
        weights, FEW, ["num_inference_steps=[4,8]", "guidance_scale=2", "sampler=unipc"], None
    )
    assert both.describe() == "S = 2 AR step(s) of 16 tokens, 4+8 unipc steps each, guidance 2"


def test_weights_that_are_damaged(own_folder: Path, weights: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (own_folder / name).write_bytes((weights / name).read_bytes())
    text = (weights / "config.json").read_text()
    for changed, part in (
        (text.replace('"depth": 2', '"depth": 3'), "blocks.2."),
        ('{"architecture": "x"}', "'x'"),
    ):
        (own_folder / "config.json").write_text(changed)
        assert part in refusal(own_folder)


# Labels


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("3", [3]),
        ("0,2,7", [0, 2, 7]),
        ("0-9", [*range(10)]),
        ("7-8, 1", [7, 8, 1]),
        ("4-4", [4]),
        ("5,5,3-6", [5, 3, 4, 6]),
    ],
)
def test_labels(sampler: InteractiveSampler, text: str, labels: list[int]) -> None:
    """Each class once: the grid has a row for each."""
    assert sampler.parse_labels(text) == labels


@pytest.mark.parametrize("text", ["", "a", "3-", "-3", "1;2", "1,,2", "0-5-9", "1.5", "²"])
def test_labels_that_are_no_numbers(sampler: InteractiveSampler, text: str) -> None:
    with pytest.raises(UserError, match="are not numbers such as 3, 0,2,7 or 0-9"):
        sampler.parse_labels(text)


@pytest.mark.parametrize("text", ["10", "0-10", "9-0", "3,5-4", "0-99999999999999"])
def test_labels_that_the_model_does_not_have(sampler: InteractiveSampler, text: str) -> None:
    with pytest.raises(UserError, match=f"labels '{text}': the model's classes are 0…9"):
        sampler.parse_labels(text)


# Samples


def model_of(sampler: InteractiveSampler) -> CausalFusion:
    assert isinstance(sampler.model, CausalFusion)
    return sampler.model


def test_samples_are_those_of_the_model(sampler: InteractiveSampler) -> None:
    labels = torch.tensor([3, 3, 0, 0])
    expected = sample(model_of(sampler), labels, FEW, PROCESS, seed=5)
    found = sampler.sample([3, 0], 2, 5)
    assert torch.equal(found, expected)
    assert not torch.equal(sampler.sample([3, 0], 2, 6), expected)


def test_originals_of_a_class_are_samples(sampler: InteractiveSampler) -> None:
    assert torch.equal(sampler.originals("7", 3, 5), sampler.sample([7], 3, 5))
    with pytest.raises(UserError, match="are not numbers"):
        sampler.originals("no-such-file.png", 1, 0)


# Edits


@pytest.mark.parametrize("keep", ["center", "outside", "top", "bottom"])
def test_kept_pixels_stay_bit_for_bit(sampler: InteractiveSampler, keep: str) -> None:
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    inside = (rows >= 2) & (rows < 6) & (columns >= 2) & (columns < 6)
    kept = {"center": inside, "outside": ~inside, "top": rows < 4, "bottom": rows >= 4}[keep]
    latents = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    edited = sampler.edit(latents, keep, [1, 4, 8], 0)
    assert edited.shape == (6, 1, 8, 8)
    for index, image in enumerate(edited):  # the originals in turn, under one class after the other
        assert torch.equal(image[0][kept], latents[index % 2, 0][kept])
        assert bool((image[0][~kept] != latents[index % 2, 0][~kept]).all())


def test_edits_under_their_own_class_differ_from_the_originals(sampler: InteractiveSampler) -> None:
    """They are the model's, but with other noise than that which the originals come from."""
    originals = sampler.originals("3", 2, 0)
    edited = sampler.edit(originals, "top", [3], 0)
    assert float((edited - originals)[:, :, 4:].abs().max()) > 0.1
    labels, keep = torch.tensor([3, 3]), keep_region("top", 8)
    of_seed = [edit(sampler.model, originals, keep, labels, FEW, PROCESS, seed=seed) for seed in range(3)]
    assert [torch.equal(edited, other) for other in of_seed] == [False, True, False]


def test_a_painted_mask(sampler: InteractiveSampler, own_folder: Path) -> None:
    """White stays; the picture is ten times as large as the latent."""
    pixels = np.zeros((80, 80), np.uint8)
    pixels[:, 40:] = 255
    Image.fromarray(pixels).save(own_folder / "mask.png")
    latents = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    edited = sampler.edit(latents, str(own_folder / "mask.png"), [2], 0)
    assert torch.equal(edited[..., 4:], latents[..., 4:])
    assert bool((edited[..., :4] != latents[..., :4]).all())


def test_step_sizes_of_an_edit_are_those_of_what_is_regenerated(weights: Path) -> None:
    sampler = InteractiveSampler.open(weights, SamplingConfig(num_inference_steps=2), ["step_sizes=[3,5]"], None)
    latents = torch.zeros(1, 1, 8, 8)
    assert not sampler.edit(latents, "top", [0], 0)[:, :, :4].any()
    assert "S = 2 AR step(s)" in sampler.describe()
    with pytest.raises(UserError, match=r"add up to 4, got \[3, 5\]"):
        sampler.edit(latents, "outside", [0], 0)


def test_a_region_that_is_none(sampler: InteractiveSampler, own_folder: Path) -> None:
    with pytest.raises(UserError) as caught:
        sampler.edit(torch.zeros(1, 1, 8, 8), "left", [0], 0)
    assert "--keep 'left' is no image file and none of center, outside, top, bottom" in str(caught.value)
    (own_folder / "mask.png").write_text("no picture")
    with pytest.raises(UserError, match=r"mask\.png is not a readable image"):
        sampler.edit(torch.zeros(1, 1, 8, 8), "mask.png", [0], 0)
