"""Plain products against the fused kernel on this CPU, forward and backward, for each dtype and length."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch.nn.functional import scaled_dot_product_attention

from causalfusion.attention.dense import products

from .timing import interleaved

LENGTHS = (20, 36, 64, 128, 256, 512)


def forward_and_backward(attend: Callable[..., torch.Tensor], q: torch.Tensor, mask: torch.Tensor) -> None:
    attend(q, q, q, mask).sum().backward()  # type: ignore[no-untyped-call]


def run() -> None:
    print("attention on the CPU: time of the fused kernel over that of plain products (above 1: plain is faster)")
    print(f"{'dtype':<10}" + "".join(f"{f'L={length}':>9}" for length in LENGTHS))
    for dtype in (torch.float32, torch.bfloat16):
        ratios = []
        for length in LENGTHS:
            q = torch.randn(32, 4, length, 32, dtype=dtype, requires_grad=True)
            mask = torch.ones(length, length, dtype=torch.bool).tril()
            forms: dict[str, Callable[..., torch.Tensor]]
            forms = {"fused": scaled_dot_product_attention, "plain": products}
            runs = {name: partial(forward_and_backward, attend, q, mask) for name, attend in forms.items()}
            times = interleaved(runs, rounds=13)
            ratios.append(times["fused"] / times["plain"])
        print(f"{str(dtype).removeprefix('torch.'):<10}" + "".join(f"{ratio:>9.2f}" for ratio in ratios))
