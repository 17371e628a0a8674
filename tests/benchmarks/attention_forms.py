"""Forms of attention on this CPU, forward and backward: plain products, the fused kernel, blocks of AR steps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch.nn.functional import scaled_dot_product_attention

from causalfusion.attention.blocks import BlockedMask
from causalfusion.attention.dense import products
from causalfusion.attention.plan import AttentionPlan
from causalfusion.factorization.sequence import lay_out
from causalfusion.factorization.steps import equal_step_sizes

from .timing import interleaved

LENGTHS = (20, 36, 64, 128, 256, 512)
TOKENS, AR_STEPS = (64, 256, 1024), (2, 4, 16)


def forward_and_backward(attend: Callable[..., torch.Tensor], q: torch.Tensor, mask: torch.Tensor) -> None:
    attend(q, q, q, mask).sum().backward()  # type: ignore[no-untyped-call]


def run() -> None:
    plain_or_fused()
    in_blocks()


def in_blocks() -> None:
    print("training sequences in fp32: time of the fused kernel on two parts over that on blocks of AR steps")
    print(f"{'image tokens':<14}" + "".join(f"{f'S={steps}':>9}" for steps in AR_STEPS))
    for tokens in TOKENS:
        ratios = []
        for steps in AR_STEPS:
            plan = AttentionPlan.of(lay_out(equal_step_sizes(tokens, steps), class_tokens=tokens // 4))
            split = plan.split()
            blocks = BlockedMask.of(split, torch.float32)
            assert blocks is not None
            q = torch.randn(2, 4, len(plan), 64, requires_grad=True)
            times = interleaved(
                {"split": partial(sequence, split.attend, q), "blocks": partial(sequence, blocks.attend, q)},
                rounds=9,
            )
            ratios.append(times["split"] / times["blocks"])
        print(f"{tokens:<14}" + "".join(f"{ratio:>9.2f}" for ratio in ratios), flush=True)


def sequence(attend: Callable[..., torch.Tensor], q: torch.Tensor) -> None:
    attend(q, q, q).sum().backward()  # type: ignore[no-untyped-call]


def plain_or_fused() -> None:
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
