"""Search for NaN and infinity in latents."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# In half precision NaN and infinity have all bits of the exponent set.
_EXPONENT = 0x7C00


def rows_not_finite(latents: NDArray[np.generic]) -> NDArray[np.int64]:
    """Return the rows of latents (rows, …) in float16 that hold NaN or infinity, sorted."""
    bits = latents.view(np.uint16).reshape(len(latents), -1)
    if np.left_shift(bits, 1).max(initial=0) < _EXPONENT << 1:  # the shift drops the sign: two fast passes
        return np.empty(0, np.int64)
    return np.flatnonzero(np.any((bits & _EXPONENT) == _EXPONENT, axis=1))
