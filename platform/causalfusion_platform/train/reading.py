"""A number of the device that the host reads later, when it waits for nothing else."""

from __future__ import annotations

import torch
from torch import Tensor


class Reading:
    """A copy of a number to the host, which begins at once.

    Args:
        number: a scalar. It may change after this.
    """

    def __init__(self, number: Tensor) -> None:
        on_gpu = number.device.type == "cuda"
        self._host = torch.empty((), dtype=number.dtype, pin_memory=on_gpu)
        self._host.copy_(number, non_blocking=True)
        self._copied = torch.cuda.Event(blocking=True) if on_gpu else None  # type: ignore[no-untyped-call]
        if self._copied is not None:
            self._copied.record()

    def value(self) -> float:
        """Return the number. The host waits until the device has computed it, but for nothing behind it."""
        if self._copied is not None:
            self._copied.synchronize()
        return float(self._host)
