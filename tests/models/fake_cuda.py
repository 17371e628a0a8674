"""A CUDA device without a GPU: tensors with shapes and no memory, under CUDA's rules of autocast.

Autograd asks the guard of a device for its stream. torch without CUDA has no such guard. That of the meta device,
which does nothing, takes its place.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

_CUDA, _META, _KINDS = 1, 14, 22  # places in c10::DeviceType


def _give_cuda_a_guard() -> None:
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib/libc10.so"))
    guards = (ctypes.c_void_p * _KINDS).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    if not guards[_CUDA]:
        guards[_CUDA] = guards[_META]


@contextmanager
def fake_cuda(*, autocast: bool = False) -> Iterator[FakeTensorMode]:
    """Make tensors on `cuda` possible, with forward passes that record their backward pass.

    Args:
        autocast: compute as under `torch.autocast("cuda", torch.bfloat16)`, which torch without CUDA refuses.
    """
    _give_cuda_a_guard()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        torch.set_autocast_enabled("cuda", autocast)
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        try:
            yield mode
        finally:
            torch.set_autocast_enabled("cuda", False)
            torch.clear_autocast_cache()


def attention_on_cuda(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """Call the kernel that `scaled_dot_product_attention` takes on CUDA. Fake tensors are given plain products."""
    if torch.is_autocast_enabled("cuda"):
        q, k, v = (x.to(torch.bfloat16) for x in (q, k, v))
    if attn_mask is None and q.dtype != torch.float32:
        out: Any = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)
    else:
        bias = None if attn_mask is None else torch.zeros(attn_mask.shape, dtype=q.dtype, device=q.device)
        if bias is not None:
            bias = bias.expand(*q.shape[:2], *bias.shape[-2:])
        out = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, bias, True)
    attended: Tensor = out[0]
    return attended
