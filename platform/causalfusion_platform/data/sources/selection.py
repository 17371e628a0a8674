"""Part of a location that is taken as its images, and the version of the rules that decide it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

EARLIER_RULES = 1
"""System files were images, digits written as text were names of classes, and splits were encoded together."""
RULES = 2
"""Present version. A folder that was begun under an earlier one is continued under it, to the same bytes."""


@dataclass(frozen=True)
class Selection:
    """Part of a location that is taken as its images."""

    rules: int = RULES
    """Version of the rules. A plan of encoding records it."""
    left_out: tuple[str, ...] = ()
    """System files, and system folders with a slash at the end, sorted."""
    splits: Mapping[str, int] = field(default_factory=dict)
    """Number of files of each split that names tell apart, such as train and test."""
    split: str | None = None
    """Split that was chosen. None: every file is taken."""
