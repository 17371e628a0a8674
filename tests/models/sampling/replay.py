"""Stand-in for CUDA graphs: operators are recorded with their tensors and numbers, and run again as they were."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from causalfusion.sampling.recorded import Recording

_WAITS = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero")
"""Operators that read the device from the host. Capturing them fails."""


class OperatorReplay:
    """Recorder that, like a CUDA graph, keeps addresses and numbers of the time of recording.

    A number that changes from step to step, such as a length in Python, would be repeated as it was. A tensor that
    was allocated anew would not be read. Both then give other samples.
    """

    def __init__(self) -> None:
        self.recorded = 0
        self.replayed = 0

    def record(self, work: Callable[[], Tensor]) -> Recording:
        work()  # as before a capture
        tape = _Tape()
        with tape:
            output = work()
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            tape.run()

        return Recording(replay, output)


class _Tape(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in _WAITS:
            raise RuntimeError(f"{func} makes the host wait")
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    def run(self) -> None:
        with torch.no_grad():
            for func, args, kwargs, result in self.calls:
                again = func(*args, **kwargs)
                for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                    if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)
