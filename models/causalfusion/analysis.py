"""Coverage of the factorization plane by training, and the loss on it (Figure 4b and c)."""

from __future__ import annotations

import torch
from torch import Tensor

from .factorization.steps import ar_step_probabilities
from .model import Model
from .noise.diffusion import DiffusionConfig
from .objective import Objective, ObjectiveConfig, draw, draw_split


def step_size_law(num_tokens: int, ar_decay: float) -> Tensor:
    """Return P(|κ| = k) for k = 1…L, over all AR steps of all draws: (L,), float64 (Figure 4b).

    A draw with S steps counts S times. Given S, every composition of L into S sizes is equally likely.
    Hence P(|κ| = k | S) = C(L−k−1, S−2) / C(L−1, S−1). For S = 1, k = L.

    Raises:
        ValueError: γ is outside [0, 1].
    """
    steps_S = torch.arange(1, num_tokens + 1, dtype=torch.float64)
    sizes_K = torch.arange(1, num_tokens, dtype=torch.float64)
    # The binomials overflow, their hazard does not. A step that reaches k tokens leaves S − 1 cuts for the L − k
    # places from k on, so it ends at k with probability (S−1)/(L−k).
    ends_SK = ((steps_S[:, None] - 1) / (num_tokens - sizes_K)).clamp(max=1)
    one_S1 = torch.ones(num_tokens, 1, dtype=torch.float64)
    reaches_SL = torch.cat([one_S1, (1 - ends_SK).cumprod(1)], dim=1)
    law_SL = reaches_SL * torch.cat([ends_SK, one_S1], dim=1)
    weights_S = ar_step_probabilities(num_tokens, ar_decay) * steps_S
    return weights_S @ law_SL / weights_S.sum()


def sampled_step_sizes(num_tokens: int, ar_decay: float, draws: int, seed: int) -> Tensor:
    """Count the AR steps of each size k = 1…L in the first `draws` training steps of a run: (L,), int64.

    Raises:
        ValueError: γ is outside [0, 1].
    """
    config = ObjectiveConfig(ar_decay=ar_decay)
    sizes = [size for step in range(draws) for size in draw_split(config, num_tokens, seed, step)]
    return torch.bincount(torch.tensor(sizes, dtype=torch.int64), minlength=num_tokens + 1)[1:]


@torch.inference_mode()
def validation_loss(
    model: Model,
    latents: Tensor,
    labels: Tensor,
    diffusion: DiffusionConfig,
    *,
    num_ar_steps: int,
    seed: int,
    batch_size: int = 256,
) -> Tensor:
    """Return the mean squared error of each AR step, unweighted: (S,), float64 (Figure 4c).

    Every sample has a random order, one uniform diffusion time, and S steps of (almost) equal size.

    Args:
        model: the network, usually with EMA weights.
        latents: (N, channels, height, width), not seen in training.
        labels: (N,) classes.
        diffusion: the noise process of training.
        num_ar_steps: S.
        seed: decides orders, times and noise. Compared models need the same seed.
        batch_size: samples in one forward pass. The result does not depend on it.

    Raises:
        ValueError: S exceeds the number of tokens.
    """
    config = ObjectiveConfig(num_ar_steps=num_ar_steps, ar_weight=1.0, class_dropout=0.0)
    objective = Objective(model, config, diffusion)
    total = torch.zeros(model.config.num_tokens, dtype=torch.float64)
    sizes: list[int] = []
    for start in range(0, len(latents), batch_size):
        part = slice(start, start + batch_size)
        samples = range(start, min(start + batch_size, len(latents)))
        drawn = draw(model.config, config, diffusion, seed=seed, step=0, samples=samples)
        loss = objective(model, latents[part].to(model.device), labels[part].to(model.device), drawn)
        total += loss.error_L.cpu().double() * len(samples)
        sizes = drawn.sizes
    return torch.stack([step.mean() for step in torch.split(total / len(latents), sizes)])
