"""Sampling over the factorization plane: any number of AR steps, any number of diffusion steps.

Shapes: B samples, G = B or 2B rows of a forward (doubled by guidance), L image tokens, N tokens of one AR
step, P numbers in a patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from . import draws
from .config import PatchOrder
from .diffusion import DiffusionConfig
from .ordering import patch_orders
from .steps import equal_step_sizes
from .transformer import CausalFusion, KVCache


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Where on the factorization plane samples are generated."""

    __pydantic_config__: ClassVar[dict[str, object]] = {"extra": "forbid", "use_attribute_docstrings": True}

    num_ar_steps: int = 1
    """S_eval: AR steps of (almost) equal size. 1 is pure diffusion, L pure next-token generation."""
    num_inference_steps: int = 250
    """Diffusion steps per AR step (Tables 9 and 10: 250); they lie at equal distances from t = 0 to T − 1."""
    guidance_scale: float = 1.0
    """Classifier-free guidance w: ε = ε_null + w (ε_class − ε_null). 1 turns guidance off."""
    patch_order: PatchOrder = "random"
    """Order in which tokens are generated."""
    order_block: int = 4
    """Block side (`blockwise`) or stride (`dilated`) of the patch order, in patches."""

    def __post_init__(self) -> None:
        if self.num_ar_steps < 1:
            raise ValueError(f"num_ar_steps must be at least 1, got {self.num_ar_steps}")
        if self.num_inference_steps < 1:
            raise ValueError(f"num_inference_steps must be at least 1, got {self.num_inference_steps}")
        if self.guidance_scale < 0:
            raise ValueError(f"guidance_scale must not be negative, got {self.guidance_scale}")


@torch.inference_mode()
def sample(
    model: CausalFusion,
    labels: Tensor,
    config: SamplingConfig,
    diffusion: DiffusionConfig,
    *,
    seed: int,
    indices: Sequence[int] | None = None,
    sizes: list[int] | None = None,
) -> Tensor:
    """Generate latents for labels.

    Args:
        model: the network, usually with EMA weights.
        labels: (B,) classes.
        seed: with a sample's index, decides its order and all of its noise.
        indices: number of each sample, default 0…B−1: sample i is the same whatever its neighbours.
        sizes: |κ_1| … |κ_S|; default: `config.num_ar_steps` steps of equal size.

    Returns:
        (B, channels, height, width) latents in the model's scale, float32 (float64 for a float64 model).

    Raises:
        ValueError: a label or split does not fit the model.
    """
    size = model.config
    if labels.ndim != 1 or (len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) <= size.null_class):
        raise ValueError(f"labels must be one-dimensional and lie in [0, {size.null_class}], got {labels.tolist()}")
    sizes = equal_step_sizes(size.num_tokens, config.num_ar_steps) if sizes is None else sizes
    if sum(sizes) != size.num_tokens or min(sizes) < 1:
        raise ValueError(f"step sizes must be positive and add up to {size.num_tokens}, got {sizes}")
    indices = range(len(labels)) if indices is None else indices
    if len(indices) != len(labels):
        raise ValueError(f"{len(labels)} labels need as many indices, got {len(indices)}")
    if not len(labels):
        return torch.empty(0, size.in_channels, size.input_size, size.input_size)
    generators = draws.sample_streams(seed, "generated sample", indices)
    order = patch_orders(config.patch_order, size.grid_size, generators, block=config.order_block)
    order = order.to(model.device)

    guided = config.guidance_scale != 1.0
    rows = torch.cat([labels, torch.full_like(labels, size.null_class)]) if guided else labels
    classes = model.class_tokens(rows.to(model.device))
    cache = KVCache(size, len(rows), classes)
    model.run_blocks(classes, None, cache, keep=True)

    # Latents stay in float32 whatever the weights are in, but for a float64 model.
    dtype = torch.float64 if model.dtype == torch.float64 else torch.float32
    patches = torch.empty(len(labels), size.num_tokens, size.token_dim, device=model.device, dtype=dtype)
    scheduler = diffusion.scheduler()
    scheduler.set_timesteps(config.num_inference_steps)
    start = 0
    for step, count in enumerate(sizes):
        positions = order[:, start : start + count]
        predict = _Guided(model, cache, positions, config.guidance_scale if guided else None)
        x = draws.randn_each(generators, count, size.token_dim).to(model.device, dtype)
        for t in scheduler.timesteps:
            x = scheduler.step(predict(x, int(t)), t, x, generator=generators).prev_sample
        patches.scatter_(1, positions[:, :, None].expand_as(x), x)
        if step + 1 < len(sizes):
            predict.remember(x)
        start += count
    return model.unpatchify(patches)


class _Guided:
    """Predict ε for the tokens of one AR step over the cache, with one batched forward for both branches."""

    def __init__(self, model: CausalFusion, cache: KVCache, positions_BN: Tensor, scale: float | None) -> None:
        self.model, self.cache, self.scale = model, cache, scale
        self.positions = self._rows(positions_BN)

    def _rows(self, x: Tensor) -> Tensor:
        return x if self.scale is None else torch.cat([x, x])

    def __call__(self, x_BNP: Tensor, t: int) -> Tensor:
        rows = self._rows(x_BNP).to(self.model.dtype)
        times = torch.full((len(rows),), t, device=rows.device)
        tokens = self.model.embed_image(rows, self.positions, times)
        epsilon = self.model.predict(self.model.run_blocks(tokens, None, self.cache)).to(x_BNP.dtype)
        if self.scale is None:
            return epsilon
        conditional, unconditional = epsilon.chunk(2)
        return unconditional + self.scale * (conditional - unconditional)

    def remember(self, x_BNP: Tensor) -> None:
        """Append the finished tokens of this AR step to the cache as clean tokens."""
        tokens = self.model.embed_image(self._rows(x_BNP).to(self.model.dtype), self.positions)
        self.model.run_blocks(tokens, None, self.cache, keep=True)
