"""Linear layers in fp32 on this CPU: torch's own product against that of oneDNN, by size."""

from __future__ import annotations

from functools import partial

import torch
from torch.nn.functional import linear

from causalfusion.linear import HAS_ONEDNN, product

from .timing import interleaved

# Rows, inputs, outputs.
SIZES = ((64, 256, 256), (512, 64, 64), (512, 96, 384), (256, 256, 256), (1280, 256, 1024), (1280, 1024, 256))


def run() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    print("linear layers in fp32, one thread: time of torch's product over oneDNN's (above 1: oneDNN is faster)")
    for rows, inputs, outputs in SIZES if HAS_ONEDNN else ():
        x, weight, bias = torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(outputs)
        repeats = max(1, 2**26 // (rows * inputs * outputs))
        times = interleaved(
            {
                "torch": partial(repeated, repeats, partial(linear, x, weight, bias)),
                "oneDNN": partial(repeated, repeats, partial(product, x, weight, bias)),
            },
            rounds=15,
        )
        size = f"{rows} × {inputs} → {outputs}"
        print(
            f"{size:<24}2^{(rows * inputs * outputs).bit_length() - 1:<4}{times['torch'] / times['oneDNN']:>6.2f}"
        )
    torch.set_num_threads(threads)


def repeated(times: int, work: partial[torch.Tensor]) -> None:
    for _ in range(times):
        work()
