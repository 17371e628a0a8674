"""Copies of a model whose weights have another type."""

from __future__ import annotations

import copy
from itertools import chain
from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def cast_copy(model: M, dtype: torch.dtype) -> M:
    """Return a copy of a model for inference, with weights and tables of `dtype` on the same device.

    A model in bf16 needs no autocast: nothing is cast when it is called, and it takes half of the memory.

    Args:
        model: the network. It is not changed, and the copy shares nothing with it.
        dtype: a type of floating-point numbers. Tensors of whole numbers keep theirs.
    """
    copies: dict[int, object] = {}
    for tensor in chain(model.parameters(), model.buffers()):
        kept = tensor.detach().to(dtype if tensor.is_floating_point() else tensor.dtype, copy=True)
        parameter = isinstance(tensor, nn.Parameter)
        copies[id(tensor)] = nn.Parameter(kept, requires_grad=False) if parameter else kept
    return copy.deepcopy(model, copies)  # which takes these in place of copies in the old type
