"""Peak arithmetic of a worker's device, FLOPs and tokens of a training step, and memory in use."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch

from causalfusion import ModelConfig, ObjectiveConfig
from causalfusion.baselines.dit import DiTConfig
from causalfusion.config import CausalFusionConfig
from causalfusion.factorization.sequence import lay_out
from causalfusion.flops import dit_flops, forward_flops

Arithmetic = Literal["fp32", "tf32", "bf16", "fp16"]

_DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_MEASURE_SIZE = 512
_MEASURE_SECONDS = 0.2

# Dense matrix products, TFLOP/s, from NVIDIA's data sheets. Values "with sparsity" there are twice as large.
# The first line counts whose words are all in the device's name.
_PEAKS: tuple[tuple[tuple[str, ...], dict[Arithmetic, float]], ...] = (
    (("B200",), {"fp16": 2250, "bf16": 2250, "tf32": 1125, "fp32": 75}),
    (("H200", "NVL"), {"fp16": 835.5, "bf16": 835.5, "tf32": 417.5, "fp32": 60}),
    (("H200",), {"fp16": 989.5, "bf16": 989.5, "tf32": 494.5, "fp32": 67}),
    (("H100", "NVL"), {"fp16": 835.5, "bf16": 835.5, "tf32": 417.5, "fp32": 60}),
    (("H100", "PCIe"), {"fp16": 756.5, "bf16": 756.5, "tf32": 378, "fp32": 51}),
    (("H100",), {"fp16": 989.5, "bf16": 989.5, "tf32": 494.5, "fp32": 67}),
    (("A100",), {"fp16": 312, "bf16": 312, "tf32": 156, "fp32": 19.5}),
    (("L40S",), {"fp16": 362, "bf16": 362, "tf32": 183, "fp32": 91.6}),
    (("L4",), {"fp16": 121, "bf16": 121, "tf32": 60, "fp32": 30.3}),
    (("A10G",), {"fp16": 70, "bf16": 70, "tf32": 35, "fp32": 31.5}),
    (("A10",), {"fp16": 125, "bf16": 125, "tf32": 62.5, "fp32": 31.2}),
    (("V100S",), {"fp16": 130, "fp32": 16.4}),
    (("V100", "PCIE"), {"fp16": 112, "fp32": 14}),
    (("V100",), {"fp16": 125, "fp32": 15.7}),
    (("T4",), {"fp16": 65, "fp32": 8.1}),
)


@dataclass(frozen=True)
class Peak:
    """Highest arithmetic throughput of a device."""

    tflops: float | None
    """Dense matrix products, TFLOP/s. None: not known."""
    source: str
    """Source of the number, as text."""


def peak(device: torch.device, precision: str) -> Peak:
    """Return the peak of a device in the arithmetic of matrix products.

    A GPU's is looked up by its name. A CPU's is measured on the threads in use, in less than 0.3 s.

    Args:
        precision: `train.precision`, with `auto` decided.
    """
    arithmetic = products_in(precision, device.type)
    if device.type == "cpu":
        return _measured(arithmetic)
    if device.type != "cuda":
        return Peak(None, f"not known for a device of type {device.type}")
    return peak_of(torch.cuda.get_device_name(device), arithmetic)


def products_in(precision: str, device_type: str) -> Arithmetic:
    """Return the arithmetic of matrix products on `cpu` or `cuda`.

    Args:
        precision: a value of `train.precision`. `auto` is taken for bf16, which GPUs from A100 on multiply in.
        device_type: type of the device that computes.
    """
    if precision == "auto" or precision.startswith("bf16"):
        return "bf16"
    if precision == "fp16":
        return "fp16"
    return "tf32" if device_type == "cuda" and precision == "tf32" else "fp32"


def peak_of(name: str, arithmetic: Arithmetic) -> Peak:
    """Return the peak of a GPU by its name, such as `NVIDIA H100 80GB HBM3`."""
    words = name.replace("-", " ").upper().split()
    if "MIG" in words:
        return Peak(None, f"not known for {name}: a part of a GPU")
    for needed, peaks in _PEAKS:
        if all(word.upper() in words for word in needed):
            if arithmetic not in peaks:
                return Peak(None, f"{needed[0]} has no matrix units for {arithmetic}")
            return Peak(float(peaks[arithmetic]), f"NVIDIA data sheet: {' '.join(needed)}, dense {arithmetic}")
    return Peak(None, f"not known for {name}")


def _measured(arithmetic: Arithmetic) -> Peak:
    """Time products of two square matrices."""
    size, threads = _MEASURE_SIZE, torch.get_num_threads()
    left = torch.ones(size, size, dtype=_DTYPES[arithmetic])
    out = torch.empty_like(left)
    torch.mm(left[:64], left)  # the first product of a process starts its threads
    best = shortest(lambda: torch.mm(left, left, out=out), threads)
    source = f"measured: {size}×{size} {arithmetic} products on {threads} thread{'s' if threads > 1 else ''}"
    return Peak(2 * size**3 / best / 1e12, source)


def shortest(
    work: Callable[[], object],
    threads: int,
    wall: Callable[[], float] = time.perf_counter,
    cpu: Callable[[], float] = time.process_time,
) -> float:
    """Return the shortest time of some work in seconds, as if no other process had the cores.

    The wall clock goes on while another process computes on a core of this one. The CPU time of this process does
    not. Shared over its threads it is the time that the work takes with a core for each.
    """
    best, until = math.inf, wall() + _MEASURE_SECONDS
    while wall() < until:
        started, used = wall(), cpu()
        work()
        best = min(best, wall() - started, (cpu() - used) / threads)
    return best


def memory_in_use(device: torch.device) -> tuple[int, int]:
    """Return the most memory used so far, bytes: this process's tensors on the GPU, and its resident memory."""
    gpu = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return gpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB


def step_flops(model: ModelConfig, sizes: list[int], objective: ObjectiveConfig) -> float:
    """Return the FLOPs of training on one image with the AR split `sizes`, forward and backward.

    Pairs of tokens that the mask hides are not counted, nor are unused results (`causalfusion.flops`), nor is
    recomputing activations. MFU from this is lower than from the dense convention.
    """
    if isinstance(model, DiTConfig):
        return 3.0 * dit_flops(model)
    copies = objective.time_copies
    return 3.0 * forward_flops(model, sizes, time_copies=copies, attention="visible", skip_unread=True)


def sequence_tokens(model: ModelConfig, sizes: list[int], copies: int) -> int:
    """Return the tokens of one image's training sequence with the AR split `sizes`, without padding."""
    return _sequence_tokens(model, sizes[-1], copies)


@lru_cache(maxsize=4096)
def _sequence_tokens(model: ModelConfig, last: int, copies: int) -> int:
    """Return the length, which depends on the last AR step alone: all clean tokens but its own are there."""
    before = model.num_tokens - last
    time_token = isinstance(model, CausalFusionConfig) and model.time_conditioning == "token"
    sizes = [before, last] if before else [last]
    return len(lay_out(sizes, class_tokens=model.num_class_tokens, copies=copies, time_token=time_token))
