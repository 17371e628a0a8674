"""`make bench`: speeds as ratios, measured interleaved in one run, because these machines are shared and noisy."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from causalfusion import attention

ROUNDS = 15
LENGTHS = (20, 36, 64, 128, 256, 512)


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def forward_and_backward(form: attention.AttentionForm, q: torch.Tensor, mask: torch.Tensor) -> None:
    attention.attend_in_form(form, q, q, q, mask).sum().backward()  # type: ignore[no-untyped-call]


def attention_forms() -> None:
    """Plain products against the fused kernel on this CPU, forward and backward, for each dtype and length."""
    print("attention on the CPU: time of the fused kernel over that of plain products (above 1: plain is faster)")
    print(f"{'dtype':<10}" + "".join(f"{f'L={length}':>9}" for length in LENGTHS))
    for dtype in (torch.float32, torch.bfloat16):
        ratios = []
        for length in LENGTHS:
            q = torch.randn(32, 4, length, 32, dtype=dtype, requires_grad=True)
            mask = torch.ones(length, length, dtype=torch.bool).tril()
            samples: dict[attention.AttentionForm, list[float]] = {"sdpa": [], "matmul": []}
            for _ in range(ROUNDS):
                for form, times in samples.items():
                    times.append(seconds(partial(forward_and_backward, form, q, mask)))
            ratios.append(statistics.median(samples["sdpa"][2:]) / statistics.median(samples["matmul"][2:]))
        print(f"{str(dtype).removeprefix('torch.'):<10}" + "".join(f"{ratio:>9.2f}" for ratio in ratios))


if __name__ == "__main__":
    torch.manual_seed(0)
    attention_forms()
