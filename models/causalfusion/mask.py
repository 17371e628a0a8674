"""The generalized causal mask (Appendix A, Figure 6, Algorithm 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from .steps import step_of_token


def generalized_causal_mask(sizes: list[int], num_class_tokens: int) -> Tensor:
    """Return which token may attend to which: (N, N), bool, True = visible.

    The sequence is [class tokens | clean tokens of steps 1…S−1 | noised tokens of steps 1…S]. The clean tokens
    of the last step are left out: nothing attends to them. Algorithm 1 as printed leaves fully masked rows when
    ctx_len = x_len; with ctx_len at the start of the last step, as here, it gives this mask.

    * class tokens see the class tokens;
    * a clean token of step s sees the class tokens and the clean tokens of steps ≤ s;
    * a noised token of step s sees the class tokens, the clean tokens of steps < s, and the noised tokens of
      step s.

    Args:
        sizes: |κ_1| … |κ_S|.
        num_class_tokens: class tokens at the start of the sequence.
    """
    step = step_of_token(sizes)
    clean_step = step[: len(step) - sizes[-1]]
    # Class tokens act as the clean tokens of a step before the first.
    context = torch.cat([torch.full((num_class_tokens,), -1), clean_step])
    return torch.cat(
        [
            torch.cat([context[:, None] >= context[None, :], torch.zeros(len(context), len(step)).bool()], dim=1),
            torch.cat([step[:, None] > context[None, :], step[:, None] == step[None, :]], dim=1),
        ]
    )
