"""Classifier-free guidance: its scale at each diffusion step, and the steps without it."""

from __future__ import annotations

from typing import Literal

GuidanceSchedule = Literal["constant", "linear", "linear_ar"]


def guidance_scales(
    scale: float,
    schedule: GuidanceSchedule,
    interval: tuple[int, int] | None,
    times: list[int],
    done: float,
) -> list[float | None]:
    """Return the guidance scale at each diffusion step of one AR step. None is a step without guidance.

    Args:
        scale: w of ε = ε_null + w (ε_class − ε_null).
        schedule: `constant` is w. `linear` goes from 1 at the first diffusion step to w at the last. `linear_ar` is
            1 + (w − 1) · done, which grows from AR step to AR step, as in MAR.
        interval: half-open range [low, high) of diffusion times with guidance (Table 5), in steps of the training
            schedule. None: all times.
        times: the diffusion times, latest first.
        done: share of the tokens to generate that exist at the end of this AR step, in (0, 1].
    """
    scales: list[float | None] = []
    for index, t in enumerate(times):
        strength = scale
        if schedule == "linear":
            strength = 1 + (scale - 1) * (index / (len(times) - 1) if len(times) > 1 else 1.0)
        elif schedule == "linear_ar":
            strength = 1 + (scale - 1) * done
        outside = interval is not None and not interval[0] <= t < interval[1]
        scales.append(None if outside or strength == 1 else strength)
    return scales
