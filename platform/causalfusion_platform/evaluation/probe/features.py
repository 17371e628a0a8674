"""Features of images for probes: the tokens of each layer, averaged.

Shapes: N images, L image tokens, D width, K layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from causalfusion import DiffusionConfig, Model
from causalfusion.representation import Condition, layer_features

from ...data.chosen_rows import ChosenRows

Features = NDArray[np.float32]

_BATCH = 256


class NotFinite(ValueError):
    """Features of a layer hold NaN or infinity."""


@torch.no_grad()
def averaged_tokens(
    model: Model,
    rows: ChosenRows,
    layers: Sequence[int],
    *,
    t: int,
    condition: Condition = "none",
    diffusion: DiffusionConfig,
    seed: int,
    alive: Callable[[], None] = lambda: None,
) -> Features:
    """Return the averaged tokens of images at some layers: (K, N, D) float32.

    Args:
        model: the network, in evaluation mode. It is left as it is.
        rows: the images, streamed from their shards.
        layers: ascending, 0 for the embedding.
        t: diffusion time that the latents are noised at. 0: they are clean, and the model is told no time.
        condition: condition of a DiT.
        diffusion: the noise process.
        seed: decides the noise, with the row id of each image. It is the same at all times.
        alive: called after each batch.

    Raises:
        NotFinite: some feature is NaN or infinite.
        UserError: a shard is damaged.
    """
    found = np.empty((len(layers), len(rows), model.config.hidden_size), np.float32)
    first = 0
    for batch in rows.batches(_BATCH):
        places = {layer: place for place, layer in enumerate(layers)}
        tokens = layer_features(
            model,
            batch.latents,
            t=t or None,
            condition=condition,
            seed=seed,
            indices=batch.row_ids.tolist(),
            diffusion=diffusion,
        )
        for layer, x_BLD in enumerate(tokens):
            if layer in places:
                found[places[layer], first : first + len(batch)] = x_BLD.float().mean(dim=1).cpu().numpy()
            if layer == layers[-1]:
                break
        first += len(batch)
        alive()
    for layer, features in zip(layers, found, strict=True):
        if not np.isfinite(features).all():
            raise NotFinite(f"features of layer {layer} at t = {t} hold NaN or infinity")
    return found
