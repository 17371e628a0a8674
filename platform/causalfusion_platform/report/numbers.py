"""Numbers, durations and sizes for readers."""

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


def significant(value: float, digits: int = 4) -> str:
    """Return a number with so many significant digits, and more where one below 1 would read 1."""
    text = f"{value:.{digits}g}"
    while abs(value) < 1 <= abs(float(text)):
        digits += 1
        text = f"{value:.{digits}g}"
    return text


def share(value: float, places: int = 0) -> str:
    """Return a share as percent. One that is neither 0 nor 1 never reads 0% or 100%, but < 1% or > 99%."""
    text, step = f"{value:.{places}%}", 10.0 ** -(2 + places)
    if value > 0 and float(text[:-1]) == 0:
        return f"< {step:.{places}%}"
    if value < 1 and float(text[:-1]) == 100:
        return f"> {1 - step:.{places}%}"
    return text


def count(number: int, what: str) -> str:
    """Return `1 row` or `1,200 rows`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def size(count: float) -> str:
    """Return bytes as people read them: 512 B, 3.4 MiB, 1.2 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.0f} TiB" if count >= 100 else f"{count:.3g} TiB"


def clock(seconds: float) -> str:
    """Return seconds as 1:02:03 or 2:03."""
    minutes, seconds = divmod(int(min(seconds, 359_999)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
