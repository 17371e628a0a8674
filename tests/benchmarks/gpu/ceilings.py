"""Ceilings of the device: matrix products of random numbers, products of the models' shapes, copies."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch

from causalfusion import ModelConfig

from .deadline import Deadline
from .report import Report
from .timing import milliseconds

# As many numbers as make one product far larger than its launch, and one copy far larger than the cache.
_SIDE = {"cuda": 8192, "cpu": 256}
_COPIED = {"cuda": 2**30, "cpu": 2**20}
_TOKENS = {"cuda": 64 * 448, "cpu": 128}


@dataclass(frozen=True)
class Ceilings:
    """What the device reaches at best."""

    products: float
    """FLOP/s of bf16 matrix products."""
    copies: float
    """Bytes/s of a copy, read and written ones both counted."""


def measure(report: Report, device: torch.device, config: ModelConfig, deadline: Deadline) -> Ceilings:
    """Measure both ceilings, and the products of a block of `config`, which lie below the first."""
    square = products(device, *(_SIDE[device.type],) * 3)
    report.add("ceilings", {"of": "bf16 products", "tflop_s": square / 1e12})
    copied = copies(device)
    report.add("ceilings", {"of": "copies", "tb_s": copied / 1e12})
    width, hidden = config.hidden_size, config.mlp_size
    for name, inputs, outputs in (
        ("qkv", width, 3 * width),
        ("projection", width, width),
        ("mlp up", width, hidden),
        ("mlp down", hidden, width),
    ):
        deadline.check(2, f"the product {name}")
        rate = products(device, _TOKENS[device.type], inputs, outputs)
        report.add("ceilings", {"of": f"{name} {inputs}×{outputs}", "tflop_s": rate / 1e12, "share": rate / square})
    return Ceilings(square, copied)


def products(device: torch.device, rows: int, inner: int, columns: int) -> float:
    """Return the FLOP/s of bf16 products of random matrices. Zeros would run faster."""
    left = torch.randn(rows, inner, device=device, dtype=torch.bfloat16)
    right = torch.randn(inner, columns, device=device, dtype=torch.bfloat16)
    out = torch.empty(rows, columns, device=device, dtype=torch.bfloat16)
    taken = milliseconds(lambda: torch.mm(left, right, out=out), device)
    return 2 * rows * inner * columns / taken * 1e3


def copies(device: torch.device) -> float:
    """Return the bytes/s that copies read and write, over buffers taken in turn."""
    buffers = [torch.randn(_COPIED[device.type], device=device) for _ in range(3)]
    turns = itertools.cycle(((0, 1), (1, 2), (2, 0)))

    def copy() -> None:
        source, target = next(turns)
        buffers[target].copy_(buffers[source])

    return 8 * buffers[0].numel() / milliseconds(copy, device) * 1e3
