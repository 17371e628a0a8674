"""One copy to the device for all tensors of a training step.

Each copy of its own costs a launch, and from ordinary memory it makes the host wait for the device.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

Tree = TypeVar("Tree")

_ALIGNMENT = 64  # bytes: each tensor begins at a multiple, as those of torch's allocators do


class Slab(Generic[Tree]):
    """Tensors of the host in one buffer, ready for a device.

    Args:
        tree: dataclasses, tuples, lists and dicts with tensors on the CPU. Everything else in it stays as it is.
        device: the device that the tensors are for. For the CPU nothing is copied, now or later.
    """

    def __init__(self, tree: Tree, device: torch.device) -> None:
        self.device = device
        self._tree = tree
        self._places: dict[int, tuple[int, Tensor]] = {}
        self._buffer: Tensor | None = None
        if device.type != "cpu":
            self._pack()

    def on_device(self) -> Tree:
        """Return the tree with its tensors on the device, as views of one buffer. The host does not wait.

        Call it on the thread whose stream reads them.
        """
        if self._buffer is None:
            return self._tree
        buffer = self._buffer.to(self.device, non_blocking=True)
        tree: Tree = _mapped(self._tree, lambda tensor: _view(buffer, *self._places[id(tensor)]))
        return tree

    def _pack(self) -> None:
        end = 0
        for tensor in _tensors(self._tree):
            if id(tensor) not in self._places:
                self._places[id(tensor)] = end, tensor
                end += -(-tensor.numel() * tensor.element_size() // _ALIGNMENT) * _ALIGNMENT
        self._buffer = pinned_buffer(end, self.device)
        for start, tensor in self._places.values():
            _view(self._buffer, start, tensor).copy_(tensor)


def pinned_buffer(size: int, device: torch.device) -> Tensor:
    """Return a buffer of `size` bytes on the host, uint8. A copy from it to a GPU does not make the host wait."""
    return torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")


def _view(buffer: Tensor, start: int, like: Tensor) -> Tensor:
    size = like.numel() * like.element_size()
    return buffer[start : start + size].view(like.dtype).view(like.shape)


def _tensors(tree: Any) -> list[Tensor]:
    found: list[Tensor] = []
    _mapped(tree, lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
    return found


def _mapped(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a copy of a tree with other tensors."""
    if isinstance(tree, Tensor):
        return change(tree)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        fields = {field.name: getattr(tree, field.name) for field in dataclasses.fields(tree)}
        return dataclasses.replace(tree, **{name: _mapped(value, change) for name, value in fields.items()})
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(_mapped(value, change) for value in tree))
    if isinstance(tree, list | tuple):
        return type(tree)(_mapped(value, change) for value in tree)
    if isinstance(tree, dict):
        return {key: _mapped(value, change) for key, value in tree.items()}
    return tree
