"""Diffusion steps that fall from AR step to AR step (DiSA, arXiv 2505.20297)."""

from __future__ import annotations

import math
from typing import Literal

StepSchedule = Literal["constant", "linear", "cosine", "two_stage"]


def scheduled_steps(schedule: StepSchedule, first: int, last: int, num_ar_steps: int) -> tuple[int, ...]:
    """Return the diffusion steps of each of K AR steps, T_1 … T_K.

    T_k = last + ⌊(first − last) · f(x)⌋ with x = (k − 1) / (K − 1), as in the authors' code. T_1 = first.

    * `constant`: f = 1.
    * `linear`: f = 1 − x.
    * `cosine`: f = (1 + cos πx) / 2.
    * `two_stage`: f = 1 for x < ½, else 0.

    Args:
        schedule: how the steps fall.
        first: T_1.
        last: T_K, at most `first`.
        num_ar_steps: K.
    """
    span, gaps = first - last, num_ar_steps - 1
    if schedule == "constant" or not gaps:
        return (first,) * num_ar_steps
    if schedule == "linear":  # of integers, because rounding may put the product just below one
        return tuple(last + span * (gaps - k) // gaps for k in range(num_ar_steps))
    if schedule == "cosine":
        return tuple(last + int((1 + math.cos(math.pi * k / gaps)) / 2 * span) for k in range(num_ar_steps))
    return tuple(first if 2 * k < gaps else last for k in range(num_ar_steps))
