"""Features against a plain ViT written as loops, for both kinds of models, clean and noised."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tests.models.random_models import randomised
from tests.models.representation.naive_vit import NaiveViT
from tests.models.text.conftest import text_config
from torch import Tensor

from causalfusion import CausalFusion, DiffusionConfig, DiT, Model, build_model
from causalfusion.representation import features, layer_features

ModelMaker = Callable[..., CausalFusion]
DiTMaker = Callable[..., DiT]
PROCESS = DiffusionConfig(beta_end=0.03)


def images(count: int, channels: int = 1, seed: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, channels, 8, 8, generator=generator, dtype=torch.float64)


def noised(latents: Tensor, noise: Tensor, t: int) -> Tensor:
    signal, sigma = (float(scale[t]) for scale in PROCESS.signal_and_noise_scales())
    return signal * latents + sigma * noise


def assert_equals_loops(model: Model, latents: Tensor, t: int | None, **options: Any) -> None:
    """Compare each layer of each image."""
    noise = images(len(latents), latents.shape[1], seed=9)
    seen = latents if t is None else noised(latents, noise, t)
    if t is not None:
        options |= {"noise": noise, "t": t, "diffusion": PROCESS}
    depth, naive = model.config.depth, NaiveViT(model)
    found = [features(model, latents, layer, **options).numpy() for layer in range(depth + 1)]
    for row in range(len(latents)):
        expected = naive.layers(seen[row], t=t, null=options.get("condition") == "null")
        assert len(expected) == depth + 1
        for own, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(own[row], other, rtol=0, atol=1e-10)
    assert all(np.abs(after - before).max() > 0.1 for before, after in itertools.pairwise(found))


@pytest.mark.usefixtures("attention_form")
@pytest.mark.parametrize("changes", [{}, {"position_embedding": "learnable", "qk_norm": False, "depth": 3}])
@pytest.mark.parametrize("t", [None, 0, 700])
@torch.no_grad()
def test_causalfusion(make_model: ModelMaker, changes: dict[str, object], t: int | None) -> None:
    assert_equals_loops(make_model(**changes), images(2), t)


@pytest.mark.usefixtures("attention_form")
@pytest.mark.parametrize("condition", ["none", "null"])
@pytest.mark.parametrize("t", [None, 0, 700])
@torch.no_grad()
def test_dit(make_dit: DiTMaker, condition: str, t: int | None) -> None:
    assert_equals_loops(make_dit(depth=3), images(2, channels=2), t, condition=condition)


@torch.no_grad()
def test_text_of_a_model_is_not_read() -> None:
    for architecture in ("causalfusion", "transfusion"):
        model = randomised(build_model(text_config(architecture=architecture)))
        assert_equals_loops(model, images(1), None)
        assert_equals_loops(model, images(1), 300)


@torch.no_grad()
def test_a_dit_without_condition_differs_from_one_with_the_null_class(make_dit: DiTMaker) -> None:
    model, latents = make_dit(), images(1, channels=2)
    none, null, early, late = (
        features(model, latents, 2, **options)
        for options in ({}, {"condition": "null"}, {"condition": "null", "t": 0}, {"condition": "null", "t": 900})
    )
    assert not torch.allclose(none, null)
    assert not torch.allclose(early, late)


def test_random_blocks_of_a_dit_are_identities_without_condition(make_dit_config: Callable[..., Any]) -> None:
    model, latents = DiT(make_dit_config()), images(2, channels=2).float()
    assert torch.equal(features(model, latents, 2), features(model, latents, 0))


@torch.no_grad()
def test_a_time_token_is_seen_and_left_out(make_model: ModelMaker) -> None:
    """The model of Table 1 with a time token: its image tokens see the token, which sees itself alone."""
    model, latents = make_model(time_conditioning="token"), images(1)
    noise = images(1, seed=9)
    found = list(layer_features(model, latents, t=40, noise=noise, diffusion=PROCESS))
    naive = NaiveViT(model)
    tokens = naive.embed(noised(latents, noise, 40)[0].numpy())
    time = naive.time(40)
    np.testing.assert_allclose(found[0][0].numpy(), np.stack(tokens), rtol=0, atol=1e-10)
    for index in range(2):
        with_time = naive.block([time, *tokens], f"blocks.{index}", None)
        [time] = naive.block([time], f"blocks.{index}", None)
        tokens = with_time[1:]
        np.testing.assert_allclose(found[index + 1][0].numpy(), np.stack(tokens), rtol=0, atol=1e-10)


@torch.no_grad()
def test_all_layers_in_one_pass_are_those_of_single_passes(make_model: ModelMaker) -> None:
    model, latents = make_model(depth=3), images(2)
    found = list(layer_features(model, latents, t=10, seed=3))
    assert len(found) == 4
    assert all(torch.equal(found[layer], features(model, latents, layer, t=10, seed=3)) for layer in range(4))


@torch.no_grad()
def test_drawn_noise_depends_on_seed_and_image_alone(make_model: ModelMaker) -> None:
    model, latents = make_model(), images(3)
    together = features(model, latents, 1, t=500, seed=7)
    alone = features(model, latents[2:], 1, t=500, seed=7, indices=[2])
    torch.testing.assert_close(together[2:], alone, rtol=0, atol=1e-12)
    assert torch.equal(together, features(model, latents, 1, t=500, seed=7))
    assert not torch.allclose(together, features(model, latents, 1, t=500, seed=8))


@torch.no_grad()
def test_a_larger_grid(make_model: ModelMaker) -> None:
    model = make_model()
    latents = torch.randn(1, 1, 12, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert features(model.on_grid(6, 4), latents, 2).shape == (1, 24, 16)


def test_gradients_reach_the_layers_before(make_model: ModelMaker) -> None:
    model = make_model()
    features(model, images(2), 1).square().sum().backward()  # type: ignore[no-untyped-call]
    assert model.get_parameter("blocks.0.attn.qkv.weight").grad is not None
    assert model.get_parameter("blocks.1.attn.qkv.weight").grad is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": 3}, "layer must lie in [0, 2] (0: the embedding, i: the output of block i), got 3"),
        ({"layer": -1}, "layer must lie in [0, 2]"),
        ({"t": 1000}, "t must lie in [0, 999], got 1000"),
        ({"t": -1}, "t must lie in [0, 999], got -1"),
        ({"condition": "null"}, "condition null is that of a DiT's blocks, which a causalfusion has not"),
        ({"condition": "label"}, "condition must be one of none, null, got 'label'"),
        ({"noise": images(2)}, "noise needs a diffusion time"),
        ({"noise": images(1), "t": 3}, "noise must have the latents' shape (2, 1, 8, 8), got (1, 1, 8, 8)"),
        ({"indices": [1], "t": 3}, "2 images need as many indices, got 1"),
        (
            {"latents": images(2, channels=2)},
            "need latents (B, 1, 8, 8) of floats, got (2, 2, 8, 8) of float64",
        ),
        ({"latents": torch.zeros(2, 1, 8, 8).long()}, "of floats, got (2, 1, 8, 8) of int64"),
        ({"latents": images(1)[0]}, "images need latents (B, 1, 8, 8) of floats, got (1, 8, 8)"),
    ],
)
def test_wrong_input(make_model: ModelMaker, options: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"latents": images(2), "layer": 1} | options
    with pytest.raises(ValueError, match=re.escape(message)):
        features(make_model(), **given)
