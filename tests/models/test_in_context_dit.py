"""γ = 0 against an in-context DiT that is written on its own: loss and every gradient, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from causalfusion import CausalFusion, DiffusionConfig, Objective, ObjectiveConfig, draw
from causalfusion.noise.diffusion import Prediction

Weights = dict[str, Tensor]


def layer_norm(x: Tensor, weights: Weights, name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    normed = centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + 1e-5)
    return normed * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x: Tensor, weights: Weights, name: str) -> Tensor:
    return torch.einsum("...i,oi->...o", x, weights[f"{name}.weight"]) + weights.get(f"{name}.bias", 0.0)


def sinusoids(grid: int, width: int) -> Tensor:
    """Return MAE's position of every patch, column first, in float32 as tables are."""
    table = np.zeros((grid * grid, width))
    quarter = width // 4
    for y in range(grid):
        for x in range(grid):
            for i in range(quarter):
                frequency = 10000 ** (-i / quarter)
                row = table[y * grid + x]
                row[i], row[quarter + i] = math.sin(x * frequency), math.cos(x * frequency)
                row[2 * quarter + i], row[3 * quarter + i] = math.sin(y * frequency), math.cos(y * frequency)
    return torch.from_numpy(table.astype(np.float32)).double()


def time_embedding(t: Tensor, weights: Weights) -> Tensor:
    """Embed times as DiT does, whose 256 features are float32."""
    frequencies = torch.exp(-math.log(10000) * torch.arange(0, 128, dtype=torch.float32) / 128)
    angles = t[:, None].float() * frequencies[None]
    features = torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1).double()
    hidden = linear(features, weights, "time_embed.mlp.0")
    return linear(hidden * torch.sigmoid(hidden), weights, "time_embed.mlp.2")


def attention(x: Tensor, prefix: list[int], heads: int, weights: Weights, name: str) -> Tensor:
    """Attend head by head: image tokens to all, the tokens of each part of the prefix to those up to its end."""
    width = x.shape[-1]
    q, k, v = linear(x, weights, f"{name}.qkv").chunk(3, dim=-1)
    blind = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    start = 0
    for part in prefix:
        blind[start : start + part, start + part :] = -torch.inf
        start += part
    outputs = []
    for own in torch.arange(width).chunk(heads):
        query, key = q[..., own], k[..., own]
        if f"{name}.q_norm.weight" in weights:
            query, key = layer_norm(query, weights, f"{name}.q_norm"), layer_norm(key, weights, f"{name}.k_norm")
        scores = torch.einsum("bie,bje->bij", query, key) / math.sqrt(width // heads) + blind
        exponents = torch.exp(scores - scores.amax(-1, keepdim=True))
        outputs.append((exponents / exponents.sum(-1, keepdim=True)) @ v[..., own])
    return linear(torch.cat(outputs, dim=-1), weights, f"{name}.proj")


def in_context_dit(
    image: Tensor,
    t: Tensor,
    labels: Tensor,
    weights: Weights,
    *,
    heads: int,
    depth: int,
    repeats: int,
    time_token: bool,
) -> Tensor:
    """Predict for whole images (B, channels, height, width), patches of 2×2, tokens in raster order.

    The sequence is [class tokens | time token, if there is one | image tokens].
    """
    batch, channels, side, _ = image.shape
    grid, width = side // 2, weights["norm.weight"].shape[0]
    cut = image.reshape(batch, channels, grid, 2, grid, 2)
    patches = torch.einsum("bcypxq->byxpqc", cut).reshape(batch, grid * grid, 4 * channels)
    tokens = linear(patches, weights, "patch_embed") + weights.get("positions", sinusoids(grid, width))
    time = time_embedding(t, weights)[:, None]
    classes = weights["class_tokens.table.weight"][labels].reshape(batch, -1, width)
    prefix = [torch.cat([classes] * repeats, dim=1) + weights["class_tokens.positions"]]
    if time_token:
        prefix.append(time)
    else:
        tokens = tokens + time
    x = torch.cat([*prefix, tokens], dim=1)
    for layer in range(depth):
        block = f"blocks.{layer}"
        parts = [part.shape[1] for part in prefix]
        x = x + attention(layer_norm(x, weights, f"{block}.norm1"), parts, heads, weights, f"{block}.attn")
        hidden = linear(layer_norm(x, weights, f"{block}.norm2"), weights, f"{block}.mlp.0")
        gelu = 0.5 * hidden * (1 + torch.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
        x = x + linear(gelu, weights, f"{block}.mlp.2")
    out = linear(layer_norm(x[:, -grid * grid :], weights, "norm"), weights, "head")
    cut = out.reshape(batch, grid, grid, 2, 2, channels)
    return torch.einsum("byxpqc->bcypxq", cut).reshape(image.shape)


@pytest.mark.usefixtures("attention_form")
@pytest.mark.parametrize(
    ("changes", "prediction", "ar_weight"),
    [
        ({}, "epsilon", 1.0),
        ({}, "epsilon", 2.0),
        ({"time_conditioning": "token", "qk_norm": False, "class_tokens": 1}, "epsilon", 1.0),
        ({"time_conditioning": "token"}, "x0", 2.0),
        ({"position_embedding": "learnable", "class_token_repeat": 3}, "v", 2.0),
    ],
)
def test_no_decay_is_an_in_context_dit(
    make_model: Callable[..., CausalFusion], changes: dict[str, object], prediction: Prediction, ar_weight: float
) -> None:
    """γ = 0: the paper's starting point (Section 4, Table 1), whatever the order in which patches are visited.

    With S = 1 the weight along the AR axis is λ everywhere.
    """
    model = make_model(in_channels=3, **changes)
    config, diffusion = model.config, DiffusionConfig(prediction=prediction)
    options = ObjectiveConfig(ar_decay=0.0, ar_weight=ar_weight, class_dropout=0.5)
    drawn = draw(config, options, diffusion, seed=2, step=0, samples=range(4))
    assert drawn.sizes == [16]
    assert 0 < int(drawn.dropped.sum()) < 4
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(4, 3, 8, 8, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 1])
    loss = Objective(model, options, diffusion)(model, latents, labels, drawn)
    loss.weighted.backward()  # type: ignore[no-untyped-call]

    weights = {name: value.detach().clone().requires_grad_() for name, value in model.named_parameters()}
    t, noise = drawn.times.view(4), drawn.noise.view(4, 3, 8, 8).double()
    signal, sigma = (scale.double()[t].view(4, 1, 1, 1) for scale in diffusion.signal_and_noise_scales())
    found = in_context_dit(
        signal * latents + sigma * noise,
        t,
        labels.where(~drawn.dropped, 3),  # 3: the null class
        weights,
        heads=config.num_heads,
        depth=config.depth,
        repeats=config.class_token_repeat,
        time_token=config.time_conditioning == "token",
    )
    target = {"epsilon": noise, "x0": latents, "v": signal * noise - sigma * latents}[prediction]
    expected = ar_weight * (found - target).pow(2).mean()
    expected.backward()  # type: ignore[no-untyped-call]

    torch.testing.assert_close(loss.weighted, expected, rtol=1e-10, atol=0)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        if "k_norm.bias" not in name:  # what all keys share changes no softmax
            assert float(parameter.grad.abs().max()) > 1e-4, name
        torch.testing.assert_close(parameter.grad, weights[name].grad, rtol=1e-10, atol=1e-10)
