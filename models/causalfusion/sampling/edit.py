"""Zero-shot editing: keep some tokens of an image, regenerate the others under a new class (Section 6, Figure 2b).

No training is needed. The kept tokens enter as clean tokens, as if an earlier AR step had made them.

Shapes: B samples, L image tokens, M tokens to generate, P numbers in a patch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from einops import reduce
from torch import Tensor

from ..factorization.ordering import patch_orders
from ..model import Model
from ..noise.diffusion import DiffusionConfig
from ..text.prompts import Prompts
from .sample import SamplingConfig, generate_tokens, sample_generators

Region = Literal["center", "outside", "top", "bottom"]


def keep_region(region: Region, size: int) -> Tensor:
    """Return the mask that keeps a region of a square latent: (size, size), bool, True = keep (Figure 2b).

    Args:
        region: `center` (the middle half of both sides), `outside` (the rest), `top` or `bottom` (a half).
        size: height and width, in latent pixels.

    Raises:
        ValueError: unknown region.
    """
    keep = torch.zeros(size, size, dtype=torch.bool)
    quarter, half = size // 4, size // 2
    if region in ("center", "outside"):
        keep[quarter : size - quarter, quarter : size - quarter] = True
        return keep if region == "center" else ~keep
    if region == "top":
        keep[:half] = True
    elif region == "bottom":
        keep[half:] = True
    else:
        raise ValueError(f"unknown region {region!r}; regions to keep: center, outside, top, bottom")
    return keep


def keep_from_image(path: Path, size: int) -> Tensor:
    """Return the mask painted in an image file, with white = keep and black = regenerate: (size, size), bool.

    The image may have any size and mode. A latent pixel is kept if at least half of its area is white.
    """
    from PIL import Image

    with Image.open(path) as image:
        gray = image.convert("L").resize((size, size), Image.Resampling.BOX)
    return torch.frombuffer(bytearray(gray.tobytes()), dtype=torch.uint8).view(size, size) > 127


@torch.no_grad()
def edit(
    model: Model,
    latents: Tensor,
    keep: Tensor,
    labels: Tensor | Prompts,
    config: SamplingConfig,
    diffusion: DiffusionConfig,
    *,
    seed: int,
    indices: Sequence[int] | None = None,
    on_step: Callable[[], None] = lambda: None,
) -> Tensor:
    """Regenerate the patches of latents that are not kept, in the AR steps of the configuration.

    A patch is kept if all of its pixels are. Kept patches are returned bit for bit.

    Args:
        model: the network, usually with EMA weights.
        latents: (B, channels, height, width) in the model's scale.
        keep: (height, width) or (B, height, width) bool, True = keep.
        labels: (B,) classes of the result, or text prompts.
        config: AR steps and diffusion steps. A list of `step_sizes` must add up to the tokens to regenerate.
        diffusion: the noise process of training.
        seed: decides, with a sample's index, its order and all of its noise.
        indices: number of each sample (default: 0…B−1).
        on_step: called after each diffusion step.

    Returns:
        (B, channels, height, width), in the type of `latents`.

    Raises:
        ValueError: shapes do not fit, or a label or split does not fit the model.
    """
    rows, columns = model.grid
    patch = model.config.patch_size
    wanted = (model.config.in_channels, rows * patch, columns * patch)
    if latents.shape[1:] != wanted or len(latents) != len(labels):
        raise ValueError(
            f"{len(labels)} labels need latents ({len(labels)}, *{wanted}), got {tuple(latents.shape)}"
        )
    if keep.dtype != torch.bool or keep.shape[-2:] != wanted[1:] or keep.ndim not in (2, 3):
        raise ValueError(
            f"the mask must be bool {wanted[1:]} or one such per sample, got {keep.dtype} {tuple(keep.shape)}"
        )
    if keep.ndim == 3 and len(keep) != len(latents):
        raise ValueError(f"{len(latents)} latents need as many masks or one for all, got {len(keep)}")
    generators = sample_generators(model, labels, seed, indices)
    order = patch_orders(config.patch_order, rows, generators, block=config.order_block, columns=columns)
    kept = reduce(keep.expand(len(latents), -1, -1).int(), "b (y p) (x q) -> b (y x)", "min", p=patch, q=patch)
    kept_in_order = kept.bool().cpu().gather(1, order)
    patches = model.patchify(latents).clone()
    # Samples that keep the same number of tokens go through the model together.
    for count in sorted(set(kept_in_order.sum(1).tolist())):
        group = (kept_in_order.sum(1) == count).nonzero().flatten()
        own, mask = order[group], kept_in_order[group]
        if count == own.shape[1]:
            continue
        known_at, new_at = own[mask].view(len(group), -1), own[~mask].view(len(group), -1)
        part = patches[group.to(patches.device)]
        known = part.gather(1, _index(known_at, part))
        new = generate_tokens(
            model,
            labels[group.to(labels.device)],
            new_at,
            config.at_most(new_at.shape[1]),
            diffusion,
            [generators[i] for i in group.tolist()],
            seed=seed,
            known=(known, known_at),
            on_step=on_step,
        )
        patches[group.to(patches.device)] = part.scatter(1, _index(new_at, part), new.to(part))
    return model.unpatchify(patches)


def _index(positions_BN: Tensor, patches_BLP: Tensor) -> Tensor:
    """Return the index of whole patches for gather and scatter."""
    return positions_BN.to(patches_BLP.device)[:, :, None].expand(-1, -1, patches_BLP.shape[2])
