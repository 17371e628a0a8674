"""Features: the image tokens of a trained model behind any of its blocks (Section 6, Appendix C).

Shapes: B images, L image tokens, D width.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from .. import draws
from ..baselines.dit import DiT
from ..model import Model, ModelConfig
from ..noise.diffusion import DiffusionConfig, noised_and_target
from ..transformer import CausalFusion

Condition = Literal["none", "null"]
"""Condition of a DiT's blocks. `none`: the zero vector, which leaves time and label out (Appendix C). `null`: the
embeddings of the time, 0 without noise, and of the null class."""


def features(
    model: Model,
    latents: Tensor,
    layer: int,
    *,
    t: int | None = None,
    condition: Condition = "none",
    noise: Tensor | None = None,
    seed: int = 0,
    indices: Sequence[int] | None = None,
    diffusion: DiffusionConfig | None = None,
) -> Tensor:
    """Return the image tokens behind block `layer`: (B, L, D) in raster order, without a final norm.

    The model runs as a plain ViT: patches and their positions, and attention of all tokens to all tokens. There are
    no class and text tokens. Without `t` a CausalFusion has no time.

    Args:
        model: the network, usually with EMA weights.
        latents: (B, channels, height, width) in the model's scale.
        layer: 0 for the embedding, i for the output of block i, up to the model's depth.
        t: diffusion time that the latents are noised at, and that the model is told. None: clean latents.
        condition: condition of a DiT. A CausalFusion has `none`.
        noise: ε of the latents' shape (default: drawn from `seed` and each image's index).
        seed: decides drawn noise.
        indices: number of each image (default: 0…B−1). The noise of image i is the same in any batch.
        diffusion: the noise process (default: that of the paper).

    Raises:
        ValueError: the layer or the time does not exist, the latents do not fit, the model lacks the condition, or
            noise is given without a time.
    """
    check_layer(layer, model.config.depth)
    found = layer_features(
        model, latents, t=t, condition=condition, noise=noise, seed=seed, indices=indices, diffusion=diffusion
    )
    return next(itertools.islice(found, layer, None))


def layer_features(
    model: Model,
    latents: Tensor,
    *,
    t: int | None = None,
    condition: Condition = "none",
    noise: Tensor | None = None,
    seed: int = 0,
    indices: Sequence[int] | None = None,
    diffusion: DiffusionConfig | None = None,
) -> Iterator[Tensor]:
    """Return an iterator over the features of all layers, from 0 to the depth, in one pass: see `features`.

    Raises:
        ValueError: as `features`.
    """
    check_condition(model.config, condition)
    size = model.config
    rows, columns = (count * size.patch_size for count in model.grid)
    check_shape(latents, (size.in_channels, rows, columns))
    latents = latents.to(model.device, model.latent_dtype)
    if t is not None:
        latents = _noised(latents, t, noise, seed, indices, diffusion or DiffusionConfig())
    elif noise is not None:
        raise ValueError("noise needs a diffusion time: give t too, or leave the noise out")
    patches = model.patchify(latents.to(model.dtype))
    if isinstance(model, DiT):
        return _dit_layers(model, patches, dit_condition(model, condition, t))
    return _causalfusion_layers(model, patches, t)


def check_layer(layer: int, depth: int) -> None:
    """Check that a model has a layer.

    Raises:
        ValueError: it does not.
    """
    if not 0 <= layer <= depth:
        raise ValueError(
            f"layer must lie in [0, {depth}] (0: the embedding, i: the output of block i), got {layer}"
        )


def check_condition(config: ModelConfig, condition: str) -> None:
    """Check that a model has a condition for its features.

    Raises:
        ValueError: it does not.
    """
    if condition not in get_args(Condition):
        raise ValueError(f"condition must be one of {', '.join(get_args(Condition))}, got {condition!r:.100}")
    if condition == "null" and config.architecture != "dit":
        raise ValueError(
            f"condition null is that of a DiT's blocks, which a {config.architecture} has not: use condition none"
        )


def check_shape(latents: Tensor, wanted: tuple[int, int, int]) -> None:
    """Check the shape of a batch of latents.

    Raises:
        ValueError: it is another one.
    """
    if tuple(latents.shape[1:]) != wanted or not latents.is_floating_point():
        raise ValueError(
            f"images need latents (B, {', '.join(map(str, wanted))}) of floats, got {tuple(latents.shape)} of "
            f"{str(latents.dtype).removeprefix('torch.')}"
        )


def dit_condition(model: DiT, condition: Condition, t: int | None = None) -> Tensor:
    """Return the vector that modulates the blocks of a DiT: (1, D)."""
    if condition == "none":
        return torch.zeros(1, model.config.hidden_size, device=model.device, dtype=model.dtype)
    time = torch.tensor([t or 0], device=model.device)
    null = torch.tensor([model.config.null_class], device=model.device)
    return functional.silu(model.time_embed(time) + model.class_embed(null))


def _noised(
    latents: Tensor,
    t: int,
    noise: Tensor | None,
    seed: int,
    indices: Sequence[int] | None,
    diffusion: DiffusionConfig,
) -> Tensor:
    """Return √ᾱ_t x_0 + √(1−ᾱ_t) ε."""
    if not 0 <= t < diffusion.num_train_steps:
        raise ValueError(f"t must lie in [0, {diffusion.num_train_steps - 1}], got {t}")
    if noise is None:
        indices = range(len(latents)) if indices is None else indices
        if len(indices) != len(latents):
            raise ValueError(f"{len(latents)} images need as many indices, got {len(indices)}")
        noise = draws.randn_each(draws.sample_streams(seed, "features", indices), *latents.shape[1:])
    elif noise.shape != latents.shape:
        raise ValueError(f"noise must have the latents' shape {tuple(latents.shape)}, got {tuple(noise.shape)}")
    time = torch.full((len(latents),), t, device=latents.device)
    scales = diffusion.signal_and_noise_scales()
    return noised_and_target(latents, noise.to(latents), time, scales, "epsilon")[0]


def _causalfusion_layers(model: CausalFusion, patches: Tensor, t: int | None) -> Iterator[Tensor]:
    count = patches.shape[1]
    positions = torch.arange(count, device=model.device).expand(len(patches), -1)
    if t is None:
        x = model.embed_image(patches, positions)
    else:
        x = model.embed_noised(patches, positions, torch.tensor([t], device=model.device))
    mask = None
    if x.shape[1] > count:  # a time token stands in front and sees itself alone, as in sampling
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=model.device)
        mask[0, 1:] = False
    yield x[:, -count:]
    for block in model.blocks:
        x = block(x, mask)
        yield x[:, -count:]


def _dit_layers(model: DiT, patches: Tensor, condition: Tensor) -> Iterator[Tensor]:
    x = model.patch_embed(patches) + model.positions
    yield x
    for block in model.blocks:
        x = block(x, condition)
        yield x
