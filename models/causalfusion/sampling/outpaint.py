"""Images beyond the grid of training, generated window by window.

Shapes: B samples, P numbers in a patch.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ..factorization.ordering import patch_orders
from ..model import Model
from ..noise.diffusion import DiffusionConfig
from ..patches import patchify, unpatchify
from ..text.prompts import Prompts
from ..transformer import CausalFusion
from .sample import SamplingConfig, generate_tokens, sample_generators


@torch.no_grad()
def outpaint(
    model: Model,
    labels: Tensor | Prompts,
    config: SamplingConfig,
    diffusion: DiffusionConfig,
    *,
    rows: int,
    columns: int,
    overlap: int,
    positions: Literal["canvas", "window"] = "canvas",
    latents: Tensor | None = None,
    at: tuple[int, int] = (0, 0),
    seed: int,
    indices: Sequence[int] | None = None,
) -> Tensor:
    """Generate, or extend, images of rows × columns patches.

    A window of the training grid's size moves over the canvas in raster order. Existing patches under it are its
    clean context. The others are generated in the AR steps of the configuration, at most one per token.
    `sample(model.on_grid(rows, columns), …)` generates a whole canvas at once instead.

    Args:
        model: the network, usually with EMA weights.
        labels: (B,) classes, or text prompts.
        config: AR steps and diffusion steps. Sizes must be `equal` or `random`, and diffusion steps one number.
        diffusion: the noise process of training.
        rows: rows of patches of the result.
        columns: patches in a row of the result.
        overlap: minimum number of patches that neighbouring windows share.
        positions: `canvas` gives a patch the sinusoids of its place on the whole canvas. `window` gives it the
            position in its window, which also works with learned positions.
        latents: (B, channels, height, width) to extend (default: none).
        at: row and column of the patch where the upper left corner of `latents` goes.
        seed: decides, with a sample's index, its order and all of its noise.
        indices: number of each sample (default: 0…B−1).

    Returns:
        (B, channels, rows · patch, columns · patch), float32 (float64 for a float64 model). `latents` are copied
        into it bit for bit.

    Raises:
        ValueError: the canvas, the overlap or the latents do not fit, or learned positions are needed beyond the
            grid.
    """
    window = model.config.grid_size
    _check(config, rows, columns, window, overlap)
    if positions == "canvas":
        if not isinstance(model, CausalFusion):
            raise ValueError("a DiT has no AR steps, so that it cannot extend an image")
        placed: Model = model.on_grid(rows, columns)
    else:
        placed = model
    patch = model.config.patch_size
    generators = sample_generators(model, labels, seed, indices)
    dtype = model.latent_dtype
    canvas = torch.zeros(len(labels), rows * columns, model.config.token_dim, dtype=dtype, device=model.device)
    done = torch.zeros(rows, columns, dtype=torch.bool)
    places = torch.arange(rows * columns).view(rows, columns)
    if latents is not None:
        height, width = (side // patch for side in latents.shape[-2:])
        if latents.shape != (len(labels), model.config.in_channels, height * patch, width * patch):
            raise ValueError(
                f"{len(labels)} labels need latents ({len(labels)}, {model.config.in_channels}, height, width) of "
                f"whole {patch}×{patch} patches, got {tuple(latents.shape)}"
            )
        area = (slice(at[0], at[0] + height), slice(at[1], at[1] + width))
        if min(at) < 0 or places[area].shape != (height, width):
            raise ValueError(
                f"latents of {height}×{width} patches at {at} do not fit a canvas of {rows}×{columns} patches"
            )
        canvas[:, places[area].flatten()] = patchify(latents.to(canvas), patch)
        done[area] = True
    for top, left in itertools.product(_starts(rows, window, overlap), _starts(columns, window, overlap)):
        area = (slice(top, top + window), slice(left, left + window))
        on_canvas, old = places[area].flatten(), done[area].flatten()
        if bool(old.all()):
            continue
        in_model = on_canvas if positions == "canvas" else torch.arange(window * window)
        order = patch_orders(config.patch_order, window, generators, block=config.order_block)
        new = order[~old[order]].view(len(labels), int((~old).sum()))
        known = old.nonzero().flatten().expand(len(labels), -1)
        generated = generate_tokens(
            placed,
            labels,
            in_model[new],
            config.at_most(new.shape[1]),
            diffusion,
            generators,
            seed=seed,
            known=(canvas[:, on_canvas[old]], in_model[known]),
        )
        index = on_canvas[new].to(canvas.device)
        canvas.scatter_(1, index[:, :, None].expand_as(generated), generated)
        done[area] = True
    return unpatchify(canvas, patch, rows, columns)


def _starts(length: int, window: int, overlap: int) -> list[int]:
    """Return the starts of the windows along one side. The last window ends with the canvas."""
    inner = range(0, length - window, window - overlap)
    return [*inner, length - window]


def _check(config: SamplingConfig, rows: int, columns: int, window: int, overlap: int) -> None:
    if min(rows, columns) < window:
        raise ValueError(
            f"a canvas of {rows}×{columns} patches is smaller than the {window}×{window} training grid"
        )
    if not 0 <= overlap < window:
        raise ValueError(f"overlap must lie in [0, {window - 1}] patches, got {overlap}")
    if not isinstance(config.step_sizes, str) or len(config.inference_steps) > 1:
        raise ValueError(
            "windows have different numbers of tokens: give step_sizes and num_inference_steps no lists"
        )
