"""Numbers and durations for readers."""

from __future__ import annotations

import math


def duration(seconds: float) -> str:
    """Return seconds as people say them: 45 s, 12 min, 3.4 h, 2.1 days."""
    for length, unit in ((86400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}" if seconds < 100 * length else f"{seconds / length:,.0f} {unit}"
    return f"{seconds:.0f} s"


def is_number(value: object) -> bool:
    """Return whether a value is a finite number. True and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
