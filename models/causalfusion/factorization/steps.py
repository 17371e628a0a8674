"""AR steps: their number S and their sizes |κ_s| (Section 5)."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor


def ar_step_probabilities(num_tokens: int, ar_decay: float) -> Tensor:
    """Return P(S = i) ∝ γ^(i−1) for i = 1…L: (L,), float64 (Section 5, "decayed sampling").

    γ = 1 is the uniform distribution of Section 4. γ = 0 always gives S = 1, the in-context DiT.

    Raises:
        ValueError: γ is outside [0, 1].
    """
    if not 0.0 <= ar_decay <= 1.0:
        raise ValueError(f"ar_decay γ must lie in [0, 1], got {ar_decay}")
    weights = torch.tensor(ar_decay, dtype=torch.float64) ** torch.arange(num_tokens, dtype=torch.float64)
    return weights / weights.sum()


def sample_num_ar_steps(num_tokens: int, ar_decay: float, generator: torch.Generator) -> int:
    """Draw the number of AR steps S from P(S = i) ∝ γ^(i−1)."""
    probabilities = ar_step_probabilities(num_tokens, ar_decay)
    return int(torch.multinomial(probabilities, 1, generator=generator).item()) + 1


def random_step_sizes(num_tokens: int, num_ar_steps: int, generator: torch.Generator) -> list[int]:
    """Cut L tokens into S AR steps at S − 1 distinct, ordered, uniformly random places (Algorithm 1).

    Returns:
        |κ_1| … |κ_S|, each at least 1, with sum L.

    Raises:
        ValueError: S is outside [1, L].
    """
    _check_num_steps(num_tokens, num_ar_steps)
    cuts = torch.randperm(num_tokens - 1, generator=generator)[: num_ar_steps - 1] + 1
    edges = [0, *sorted(cuts.tolist()), num_tokens]
    return [end - start for start, end in itertools.pairwise(edges)]


def equal_step_sizes(num_tokens: int, num_ar_steps: int) -> list[int]:
    """Cut L tokens into S AR steps that differ by at most one token, larger steps first.

    Raises:
        ValueError: S is outside [1, L].
    """
    _check_num_steps(num_tokens, num_ar_steps)
    size, extra = divmod(num_tokens, num_ar_steps)
    return [size + 1] * extra + [size] * (num_ar_steps - extra)


def step_of_token(sizes: list[int]) -> Tensor:
    """Return the AR step, counted from 0, of each token in visiting order: (L,), int64."""
    return torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))


def check_sizes(sizes: list[int], num_tokens: int) -> None:
    """Check that AR steps of these sizes make up the image.

    Raises:
        ValueError: a size is not positive, or they do not add up to `num_tokens`.
    """
    if sum(sizes) != num_tokens or min(sizes) < 1:
        raise ValueError(f"step sizes must be positive and add up to {num_tokens}, got {sizes}")


def _check_num_steps(num_tokens: int, num_ar_steps: int) -> None:
    if not 1 <= num_ar_steps <= num_tokens:
        raise ValueError(f"the number of AR steps must lie in [1, {num_tokens}], got {num_ar_steps}")
