"""Result of one check of the doctor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

Verdict = Literal["ok", "warn", "FAIL"]


@dataclass(frozen=True)
class Check:
    """One line of the doctor's table."""

    name: str
    verdict: Verdict
    line: str
    advice: str = ""
    """Command to type, or setting to change, after a warning or a failure."""

    @classmethod
    def failed(cls, name: str, fault: str) -> Self:
        """Return a failure from the text of a `UserError`: the fault on its first line, and the advice below."""
        line, _, advice = fault.partition("\n")
        return cls(name, "FAIL", line, " ".join(advice.split()))
