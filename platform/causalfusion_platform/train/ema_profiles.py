"""Decays of a moving average of the weights: exponential, or a power function of the step."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from ..checkpoint.posthoc import exponent, power_name
from ..config.schema import OptimConfig


@dataclass(frozen=True)
class Exponential:
    """A constant decay d: the average remembers about 1 / (1 − d) steps."""

    rate: float
    """d, in [0, 1)."""
    warmup: bool
    """If true, step n takes the smaller decay (1 + n) / (10 + n) while it is below d."""

    @property
    def name(self) -> str:
        """Name of the average's folder in a checkpoint, such as `ema-0.9999`."""
        return f"ema-{self.rate!r}"

    def decay(self, step: int) -> float:
        """Return the decay of step number `step`, counted from 1."""
        return min(self.rate, (1 + step) / (10 + step)) if self.warmup else self.rate


@dataclass(frozen=True)
class PowerFunction:
    """The average of EDM2 (Karras et al. 2024, Section 3.1): weights at step τ count as τ^γ does.

    The averaged stretch of steps grows with the run. The first step removes the initial weights. From a few of
    these averages, stored along a run, `checkpoint.posthoc` computes the average of any other width.
    """

    sigma: float
    """Relative width σ_rel below 0.28: the standard deviation of τ under that weighting, as a share of the run."""

    @property
    def name(self) -> str:
        """Name of the average's folder in a checkpoint, such as `power-0.10`."""
        return power_name(self.sigma)

    @cached_property
    def gamma(self) -> float:
        """Exponent γ of the weighting."""
        return exponent(self.sigma)

    def decay(self, step: int) -> float:
        """Return β(t) = (1 − 1/t)^(γ + 1) for step number t = `step`, counted from 1 (Equation 3)."""
        return float((1 - 1 / step) ** (self.gamma + 1))


Profile = Exponential | PowerFunction
"""Both have `name`, and `decay(step)`, where θ̄ ← decay · θ̄ + (1 − decay) · θ."""


def profiles_of(optim: OptimConfig) -> tuple[Profile, ...]:
    """Return the averages that a run keeps. It samples from the first."""
    rates = (optim.ema_decay, *optim.ema_more_decays)
    return (
        *(Exponential(rate, optim.ema_warmup) for rate in rates),
        *(PowerFunction(sigma) for sigma in optim.ema_power),
    )
