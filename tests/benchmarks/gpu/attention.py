"""Attention of one layer, forward and backward, in every form and at every length: which form to choose."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import get_args
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional

from causalfusion import CausalFusionConfig
from causalfusion.attention import dense
from causalfusion.attention.dense import AttentionForm
from causalfusion.attention.flex import FlexMask
from causalfusion.attention.plan import AttentionPlan
from causalfusion.factorization.sequence import lay_out

from .deadline import Deadline
from .report import Report
from .steps import Size
from .timing import milliseconds

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def splits(config: CausalFusionConfig, lengths: Iterable[int]) -> list[tuple[int, ...]]:
    """Return an AR split for each sequence length: S = 1 for the shortest, else steps of about equal size."""
    image, classes = config.num_tokens, config.num_class_tokens
    found = []
    for length in lengths:
        last = max(image - max(length - classes - image, 0), 1)
        before = image - last
        count = max(min(before // last, 8), 1) if before else 0
        sizes = [before // count + (place < before % count) for place in range(count)] if count else []
        found.append((*sizes, last))
    return found


def measure(
    report: Report,
    config: CausalFusionConfig,
    size: Size,
    device: torch.device,
    deadline: Deadline,
) -> None:
    """Measure every form at every length, and say which to choose."""
    shortest, longest = (config.num_class_tokens + image for image in (config.num_tokens, 2 * config.num_tokens))
    lengths = range(-(-shortest // size.multiple) * size.multiple, longest + 1, size.multiple)
    fastest: dict[int, str] = {}
    for sizes in splits(config, lengths):
        layout = lay_out(list(sizes), class_tokens=config.num_class_tokens, multiple=size.multiple)
        plan = AttentionPlan.of(layout).to(device)
        deadline.check(2, f"attention over {len(plan)} tokens")
        taken: dict[str, float] = {}
        for form, attend in forms(plan, device).items():
            try:
                taken[form] = _layer(attend, config, size.batch, len(plan), device)
            except RuntimeError as error:  # of a kernel that is not there on this device
                report.add("attention_left_out", {"length": len(plan), "form": form, "error": str(error)[:200]})
        fastest[len(plan)] = min(get_args(AttentionForm), key=lambda form: taken.get(form, math.inf))
        in_use = dense.attention_form(device, torch.bfloat16, len(plan))
        report.add(
            "attention",
            {"length": len(plan), "ar_steps": len(sizes), **taken, "fastest": fastest[len(plan)], "in_use": in_use},
        )
    matmul, flex = bounds(fastest)
    report.add("attention_choice", {"matmul_up_to": matmul, "flex_from": flex})


def bounds(fastest: Mapping[int, str]) -> tuple[int, int | None]:
    """Return the line of the table of forms: lengths up to which `matmul` runs, and from which on `flex` runs.

    Args:
        fastest: the fastest form at each length.

    Returns:
        0 if `matmul` is not the fastest at the shortest length, None if `flex` is not at the longest.
    """
    lengths = sorted(fastest)
    by_products = itertools.takewhile(lambda length: fastest[length] == "matmul", lengths)
    by_flex = itertools.takewhile(lambda length: fastest[length] == "flex", reversed(lengths))
    return max(by_products, default=0), min(by_flex, default=None)


def forms(plan: AttentionPlan, device: torch.device) -> dict[str, Attend]:
    """Return each form as a function of q, k and v, and attention without any mask, which is their ceiling.

    Where nothing is hidden, `flex` is left out: the fused kernel runs in its place.
    """
    parts = plan.split(device)
    found: dict[str, Attend] = {
        "matmul": in_form("matmul", parts.attend),
        "split": in_form("split", parts.attend),
        "unmasked": functional.scaled_dot_product_attention,
    }
    if plan.hides_context or plan.hides_from_noised:
        found["flex"] = FlexMask.of(plan.places, len(plan)).attend
    return found


def in_form(form: AttentionForm, attend: Attend) -> Attend:
    """Return attention that computes its parts in a form, whatever the table of forms says."""

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with mock.patch.object(dense, "attention_form", lambda *_: form):
            return attend(q, k, v)

    return run


def _layer(attend: Attend, config: CausalFusionConfig, batch: int, length: int, device: torch.device) -> float:
    """Return the milliseconds of one layer's attention, forward and backward, in bf16."""
    shape = (batch, length, 3, config.num_heads, config.head_dim)
    qkv = torch.randn(shape, device=device, dtype=torch.bfloat16, requires_grad=True)
    gradient = torch.randn(batch, config.num_heads, length, config.head_dim, device=device, dtype=torch.bfloat16)

    def work() -> None:
        q, k, v = (x.transpose(1, 2) for x in qkv.unbind(2))
        attend(q, k, v).backward(gradient)  # type: ignore[no-untyped-call]
        qkv.grad = None

    return milliseconds(work, device)
