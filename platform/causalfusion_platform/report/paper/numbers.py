"""Measured numbers as a reader wants them: no more digits than the interval over seeds leaves."""

from __future__ import annotations

import math

from ..tables import cell
from .statistics import Estimate, Gain

# More places than this say nothing that a reader of a table wants.
_MOST_PLACES = 6


def with_interval(found: Estimate) -> str:
    """Return `12.3 ± 0.4`, the mean alone without an interval, or a dash without a mean."""
    return _with_half_width(found.mean, found.half_width)


def gain_with_interval(gain: Gain) -> str:
    """Return a gain with its sign, such as `+1.2 ± 0.3`."""
    text = _with_half_width(gain.mean, gain.half_width).replace("-", "−")
    return text if gain.mean is None or gain.mean < 0 else f"+{text}"


def printed_values(values: list[float | None]) -> list[str]:
    """Return a column of the paper with as many decimal places as its most exact value has, as it was printed."""
    places = max((len(f"{value:.10g}".partition(".")[2]) for value in values if value is not None), default=0)
    return ["–" if value is None else f"{value:.{places}f}" for value in values]


def p_text(value: float | None) -> str:
    """Return a p-value."""
    if value is None:
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.2g}" if value < 0.995 else "1"


def _with_half_width(mean: float | None, half: float | None) -> str:
    if mean is None or half is None:
        return cell(mean)
    if not half:  # all seeds gave the same
        return f"{cell(mean)} ± 0"
    # Two digits of the interval's half width.
    places = max(0, 1 - math.floor(math.log10(half)))
    if places > _MOST_PLACES:
        return f"{mean:.4g} ± {half:.1g}"
    return f"{mean:.{places}f} ± {half:.{places}f}"
