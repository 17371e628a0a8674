"""Numbers as people read them."""

from __future__ import annotations


def size(count: float) -> str:
    """Return bytes as people read them: 512 B, 3.4 MiB, 1.2 GiB."""
    if count < 1024:
        return f"{count:.0f} B"
    unit = 0
    while count >= 1024 and unit < 4:
        count, unit = count / 1024, unit + 1
    return f"{count:.0f} {'KMGT'[unit - 1]}iB" if count >= 100 else f"{count:.3g} {'KMGT'[unit - 1]}iB"
