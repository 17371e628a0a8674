"""A GPU that is not there: tensors on it have shapes and types but no values, and each wait for it is counted.

Tensors of the host are real, so that code between host and device runs as it does with a GPU.
"""

from __future__ import annotations

import ctypes
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA = torch.device("cuda", 0)

# Operators whose kernels on a GPU wait, because the size of their result depends on values.
_SIZE_FROM_VALUES = {
    "aten::nonzero",
    "aten::masked_select",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::unique_consecutive",
    "aten::repeat_interleave",
    "aten::bincount",
}
_CUDA, _META = 1, 14  # numbers of the device types in c10
_COPIES = {"aten::_to_copy", "aten::copy_"}


class Waits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count the operators for which the host waits for the device, by the line of ours that calls them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: Counter[str] = Counter()
        self.copies = 0
        """Copies for which the host does not wait."""
        self.pinned: set[int] = set()
        """Addresses of the buffers that count as pinned memory."""

    def clear(self) -> None:
        """Begin to count anew."""
        self.found.clear()
        self.copies = 0

    def pinned_buffer(self, size: int, device: torch.device) -> Tensor:
        """Return ordinary memory that counts as pinned, in place of `causalfusion.slab.pinned_buffer`."""
        del device
        buffer = torch.empty(size, dtype=torch.uint8)
        self.pinned.add(buffer.data_ptr())
        return buffer

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_device = [tensor for tensor in tensors if tensor.device.type == "cuda"]
        name = func._schema.name
        to = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
        if not on_device and (to is None or to.type != "cuda"):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if name == "aten::_local_scalar_dense":
            self._note("a value is read")
            return 1.0 if tensors[0].is_floating_point() else 1
        if name in _COPIES:
            self._copy(name, tensors, to, args, kwargs)
        elif _sized_by_values(name, args):
            self._note(f"the size of the result of {name} depends on values")
        elif any(tensor.device.type == "cpu" and (tensor.ndim or "where" in name) for tensor in tensors):
            self._note(f"{name} copies a tensor of the host")
        return func(*args, **kwargs)

    def _copy(self, name: str, tensors: list[Tensor], to: torch.device | None, args: Any, kwargs: Any) -> None:
        source, target = (tensors[1], tensors[0].device) if name == "aten::copy_" else (tensors[0], to)
        if target is None or target.type == source.device.type:
            return
        host = source if source.device.type == "cpu" else (tensors[0] if name == "aten::copy_" else None)
        asked = kwargs.get("non_blocking", False) or (name == "aten::copy_" and len(args) > 2 and args[2])
        pinned = host is not None and host.untyped_storage().data_ptr() in self.pinned
        if asked and pinned:
            self.copies += 1
        else:
            self._note(f"a copy between {source.device.type} and {target.type}")

    def _note(self, reason: str) -> None:
        self.found[f"{_caller()}: {reason}"] += 1


def _sized_by_values(name: str, args: Any) -> bool:
    if name == "aten::index":
        return any(isinstance(index, Tensor) and index.dtype == torch.bool for index in args[1])
    return name in _SIZE_FROM_VALUES


def _caller() -> str:
    """Return the innermost line of the two packages on the stack."""
    for frame in reversed(traceback.extract_stack()):
        if "/causalfusion/" in frame.filename or "/causalfusion_platform/" in frame.filename:
            return f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.line}"
    return "elsewhere"


@contextmanager
def _device_guard() -> Iterator[None]:
    """Give a build of torch without CUDA a guard of CUDA devices: that of the meta device, which does nothing.

    Without one, indexing and copies of such tensors are refused before any fake kernel is asked.
    """
    if torch.version.cuda is not None:
        yield
        return
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * (_META + 1)).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    guards[_CUDA] = guards[_META]
    try:
        yield
    finally:
        guards[_CUDA] = None


@contextmanager
def fake_gpu(patch: pytest.MonkeyPatch) -> Iterator[Waits]:
    """Run the body with a device `cuda` that computes nothing. Yield the count of waits for it."""
    waits = Waits()
    patch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    patch.setattr("causalfusion.slab.pinned_buffer", waits.pinned_buffer)
    patch.setattr("causalfusion_platform.train.guard.Reading", FakeReading)
    patch.setattr("torch.cuda.is_bf16_supported", lambda *_, **__: True)
    with _device_guard(), FakeTensorMode(allow_non_fake_inputs=True), waits:
        yield waits


class Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count the operators on any device whose kernels make the host wait on a GPU, copies left out."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: Counter[str] = Counter()

    def clear(self) -> None:
        """Begin to count anew."""
        self.found.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if name == "aten::_local_scalar_dense" or _sized_by_values(name, args):
            self.found[f"{_caller()}: {name}"] += 1
        return func(*args, **(kwargs or {}))


class FakeReading:
    """A number that a device gives late, in place of `Reading`. It has no value."""

    def __init__(self, number: Tensor) -> None:
        assert number.ndim == 0

    def value(self) -> float:
        """Return some gradient norm."""
        return 1.0


class PlainEngine:
    """A model on its device with the parts of DeepSpeed's engine that the loop uses, at ZeRO 0."""

    def __init__(self, module: torch.nn.Module, optimizer: Any, parts: int, device: torch.device = CUDA) -> None:
        self.device = device
        self.module, self.optimizer, self.basic_optimizer = module, optimizer, optimizer
        self.parts, self.done = parts, 0

    def __call__(self, *args: Any) -> Any:
        """Run the model as DeepSpeed does with `torch_autocast`."""
        with torch.autocast(self.device.type, torch.bfloat16):
            return self.module(*args)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of one micro-batch."""
        if self.device.type == "cpu":
            (loss / self.parts).backward()  # type: ignore[no-untyped-call]
            return
        # Torch refuses a backward pass on a device that is not there.
        for parameter in self.module.parameters():
            parameter.grad = torch.empty_like(parameter)

    def step(self) -> None:
        """Make the optimizer's step after the last micro-batch."""
        self.done += 1
        if self.done % self.parts == 0:
            self.optimizer.step()
            self.optimizer.zero_grad()
