"""Box of pixels or latents."""

from __future__ import annotations

from typing import NamedTuple


class Box(NamedTuple):
    """Rows top … bottom − 1 and columns left … right − 1 of an image."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Slices of rows and columns."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    @property
    def area(self) -> int:
        """Number of pixels."""
        return (self.bottom - self.top) * (self.right - self.left)
