"""Outcome of one check: a number beside its limit."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """One check, made or left out."""

    name: str
    value: float | None
    """None: the check was left out."""
    allowed: str
    """Limit of the value, or the reason for which the check was left out."""
    passed: bool

    def __str__(self) -> str:
        if self.value is None:
            return f"left out  {self.name}: {self.allowed}"
        return f"{'passed' if self.passed else 'FAILED':<8}  {self.name}: {self.value:.3g} ({self.allowed})"


def at_most(name: str, value: float, limit: float) -> Outcome:
    """Require a value of at most `limit`. NaN fails."""
    return Outcome(name, value, f"at most {limit:g}", value <= limit)


def left_out(name: str, reason: str) -> Outcome:
    """Say that a check was not made, which is not a failure."""
    return Outcome(name, None, reason, True)
