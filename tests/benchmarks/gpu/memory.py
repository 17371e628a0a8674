"""Peak of memory in a training step, beside its estimate."""

from __future__ import annotations

import torch

from causalfusion import CausalFusionConfig
from causalfusion.attention.dense import AttentionForm
from causalfusion.memory import SequenceLengths, activation_bytes

from .roofline import parameters_of

_FREE = 0.9
"""Share of a GPU's memory that a step may take by its estimate."""


def estimate(
    config: CausalFusionConfig, *, batch: int, length: int, form: AttentionForm, compiled: bool = False
) -> float:
    """Return the bytes of a step at ZeRO 0 in bf16 autocast.

    It is the platform's estimate for one micro-batch: weights, AdamW's moments and the average in fp32 stay. The
    larger of gradients and activations comes on top, because the backward pass frees one while it makes the other.
    The block whose backward pass goes on holds half as much again as it keeps.
    """
    activations = activation_bytes(
        config,
        SequenceLengths(context=length - config.num_tokens, noised=config.num_tokens),
        rows=batch,
        precision="bf16",
        device_type="cuda",
        attention=form,
        compiled=compiled,
    )
    weights = parameters_of(config)
    stays = (4 + 8 + 4) * weights
    return stays + max(4 * weights, activations * (1 + 1 / (2 * config.depth)))


def fitting_batch(
    config: CausalFusionConfig, *, batch: int, length: int, form: AttentionForm, memory: float
) -> int:
    """Return the largest of `batch`, its half, its quarter … whose step fits into a GPU's memory in bytes.

    Raises:
        ValueError: not even one image does.
    """
    tried = batch
    while tried and estimate(config, batch=tried, length=length, form=form) > _FREE * memory:
        tried //= 2
    if not tried:
        raise ValueError(f"a step of one image does not fit into {memory / 2**30:.0f} GiB")
    return tried


def peak(device: torch.device) -> int | None:
    """Return the most bytes that tensors have taken on a GPU since `forget_peak`. None on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def forget_peak(device: torch.device) -> None:
    """Begin to look for the peak of memory anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
