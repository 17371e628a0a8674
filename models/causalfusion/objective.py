"""The training objective: ε-MSE over all AR steps, weighted along the AR axis (Eq. 4 and 5, Section 5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from . import draws
from .config import CausalFusionConfig, PatchOrder
from .diffusion import DiffusionConfig, add_noise, sample_times
from .mask import generalized_causal_mask
from .ordering import patch_orders
from .steps import equal_step_sizes, random_step_sizes, sample_num_ar_steps, step_of_token
from .transformer import CausalFusion


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """How training covers the factorization plane."""

    __pydantic_config__: ClassVar[dict[str, object]] = {"extra": "forbid", "use_attribute_docstrings": True}

    ar_decay: float = 0.9
    """γ in [0, 1]: P(S = i) ∝ γ^(i−1). 1: uniform; 0: always S = 1 (Table 3a)."""
    num_ar_steps: int | None = None
    """Fixed S with equal steps (Table 2); null draws S with `ar_decay` and cuts at random."""
    patch_order: PatchOrder = "random"
    """Order in which tokens are visited (Table 3b)."""
    order_block: int = 4
    """Block side (`blockwise`) or stride (`dilated`) of the patch order, in patches."""
    ar_weight: float = 2.0
    """λ ≥ 1: loss weight at the first AR step, decaying to 1 (Table 3c)."""
    ar_weight_along: Literal["step", "token"] = "step"
    """Axis of the linear decay: `step`, the AR step's index (paper); `token`, tokens before the step (release)."""
    class_dropout: float = 0.1
    """Probability that a sample's class is replaced by the null class, for classifier-free guidance."""

    def __post_init__(self) -> None:
        if not 0 <= self.ar_decay <= 1:
            raise ValueError(f"ar_decay γ must lie in [0, 1], got {self.ar_decay}")
        if self.num_ar_steps is not None and self.num_ar_steps < 1:
            raise ValueError(f"num_ar_steps must be at least 1, got {self.num_ar_steps}")
        if self.ar_weight < 1:
            raise ValueError(f"ar_weight λ must be at least 1, got {self.ar_weight}")
        if not 0 <= self.class_dropout < 1:
            raise ValueError(f"class_dropout must lie in [0, 1), got {self.class_dropout}")


def ar_weights(sizes: list[int], ar_weight: float, along: Literal["step", "token"]) -> Tensor:
    """Return w(s) for each token in visiting order: (L,), float32 (Section 5, "Loss weighting along AR axis").

    `step`, the paper's reading, is linear in the step's index: λ at s = 1, 1 at s = S. `token`, the release's,
    is λ − (λ − 1) · (tokens before step s) / L. With S = 1 both give λ.
    """
    step = step_of_token(sizes)
    if along == "step":
        fraction = step / max(len(sizes) - 1, 1)
    else:
        starts = torch.tensor([0, *sizes[:-1]]).cumsum(0)
        fraction = starts[step] / sum(sizes)
    return ar_weight - (ar_weight - 1) * fraction


@dataclass(frozen=True)
class Draws:
    """Everything random about one training batch, on the CPU. B samples, L tokens."""

    sizes: list[int]
    """|κ_1| … |κ_S|, shared by the whole global batch so that no rank waits for a longer sequence."""
    orders: Tensor
    """(B, L) raster positions in visiting order."""
    times: Tensor
    """(B,) diffusion times, shared over AR steps."""
    noise: Tensor
    """(B, channels, height, width) standard normal, float32."""
    dropped: Tensor
    """(B,) bool: class replaced by the null class."""


def draw_split(config: ObjectiveConfig, num_tokens: int, seed: int, step: int) -> list[int]:
    """Draw the AR split of one training step: the same on every rank (seeded by the step alone).

    Raises:
        ValueError: a fixed S exceeds the number of tokens.
    """
    generator = draws.stream(seed, "ar split", step)
    if config.num_ar_steps is not None:
        return equal_step_sizes(num_tokens, config.num_ar_steps)
    num_steps = sample_num_ar_steps(num_tokens, config.ar_decay, generator)
    return random_step_sizes(num_tokens, num_steps, generator)


def draw(
    model: CausalFusionConfig,
    objective: ObjectiveConfig,
    diffusion: DiffusionConfig,
    *,
    seed: int,
    step: int,
    samples: range,
) -> Draws:
    """Make the draws of one training step for the samples numbered `samples`.

    Args:
        seed: the run's seed.
        step: the optimizer step, counted from 0.
        samples: global numbers (images seen before each one); its draws depend on nothing else.
    """
    generators = draws.sample_streams(seed, "training sample", samples)
    shape = (model.in_channels, model.input_size, model.input_size)
    return Draws(
        sizes=draw_split(objective, model.num_tokens, seed, step),
        orders=patch_orders(objective.patch_order, model.grid_size, generators, block=objective.order_block),
        times=sample_times(diffusion.num_train_steps, generators),
        noise=draws.randn_each(generators, *shape),
        dropped=torch.stack([torch.rand((), generator=g) for g in generators]) < objective.class_dropout,
    )


class Predictor(Protocol):
    """A CausalFusion, or a wrapper (an engine) that is called like one."""

    def __call__(
        self, noised: Tensor, clean: Tensor, positions: Tensor, t: Tensor, labels: Tensor, mask: Tensor
    ) -> Tensor: ...


@dataclass(frozen=True)
class Loss:
    """The loss of one batch."""

    weighted: Tensor
    """Scalar to minimise: mean of w(s) · (ε − ε̂)²."""
    mse: Tensor
    """Scalar, detached: mean of (ε − ε̂)², comparable across λ."""


class Objective:
    """Compute the training loss of a batch from its latents, labels and draws."""

    def __init__(self, model: CausalFusion, config: ObjectiveConfig, diffusion: DiffusionConfig) -> None:
        self.model = model
        self.config = config
        self.scales = diffusion.signal_and_noise_scales()

    def __call__(self, predict: Predictor, latents: Tensor, labels: Tensor, drawn: Draws) -> Loss:
        """Return the loss of latents (B, channels, height, width) with labels (B,)."""
        device = latents.device
        order = drawn.orders.to(device)
        noise = drawn.noise.to(device, latents.dtype)
        noised = add_noise(latents, noise, drawn.times.to(device), self.scales)
        x0, xt, target = (_reorder(self.model.patchify(x), order) for x in (latents, noised, noise))
        labels = torch.where(drawn.dropped.to(device), self.model.config.null_class, labels)
        mask = generalized_causal_mask(drawn.sizes, self.model.config.num_class_tokens).to(device)
        clean = x0[:, : x0.shape[1] - drawn.sizes[-1]]
        prediction = predict(xt, clean, order, drawn.times.to(device), labels, mask)
        error = (prediction.float() - target.float()).square().mean(dim=(0, 2))
        weights = ar_weights(drawn.sizes, self.config.ar_weight, self.config.ar_weight_along).to(device)
        return Loss(weighted=(weights * error).mean(), mse=error.detach().mean())


def _reorder(patches_BLP: Tensor, order_BL: Tensor) -> Tensor:
    return patches_BLP.gather(1, order_BL[:, :, None].expand_as(patches_BLP))
