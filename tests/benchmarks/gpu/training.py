"""Training of whole models: images/s, share of the ceiling, synchronizations, recompilations, peak of memory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch._dynamo.utils import counters

from causalfusion import CausalFusionConfig, ObjectiveConfig
from causalfusion.attention.dense import attention_form

from . import memory, roofline, waiting
from .ceilings import Ceilings
from .deadline import Deadline
from .report import Report
from .steps import Size, Training
from .timing import seconds

_WATCHED = 3
"""Steps in which synchronizations are counted."""


def measure(
    report: Report,
    name: str,
    config: CausalFusionConfig,
    size: Size,
    ceilings: Ceilings,
    device: torch.device,
    deadline: Deadline,
) -> None:
    """Measure the training of one model, and judge it."""
    longest = -(-(config.num_class_tokens + 2 * config.num_tokens - 1) // size.multiple) * size.multiple
    form = attention_form(device, torch.bfloat16, longest)
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        batch = memory.fitting_batch(config, batch=size.batch, length=longest, form=form, memory=total)
        size = replace(size, batch=batch)
    eager_memory(report, name, config, size, device)
    deadline.check(10, "training")
    torch._dynamo.reset()
    training, none = Training(config, size, device, compiled=True), graphs()
    started, lengths = time.perf_counter(), training.by_length()
    timed = warm_up(training, lengths, deadline)[: size.steps]
    warm, compiled = time.perf_counter() - started, graphs() - none
    memory.forget_peak(device)
    taken = seconds(partial(training.steps, timed), device)
    recompiled = graphs() - none - compiled
    judge_memory(report, name, training, max(training.length(number) for number in timed), compiled=True)
    waits = synchronizations(report, name, training, timed[:_WATCHED])
    objective = ObjectiveConfig(sequence_multiple=size.multiple)
    predicted = roofline.training_step(
        config,
        objective,
        ceilings,
        batch=size.batch,
        form="flex" if form == "flex" else "split",
        compiled=True,
        multiple=size.multiple,
    )
    report.add(
        "training",
        {
            "model": name,
            "batch": size.batch,
            "images_s": len(timed) * size.batch / taken,
            "predicted": size.batch / predicted.total,
            "limit": roofline.limit(config, objective, ceilings),
            "share_of_ceiling": training.flops(timed) / taken / ceilings.products,
            "ms_step": taken / len(timed) * 1e3,
            "synchronizations": waits,
            "graphs": compiled,
            "recompilations": recompiled,
            "lengths": len({training.length(number) for number in timed}),
            "of_lengths": len(lengths),
            "warm_s": warm,
        },
    )
    report.none_of(f"{name}: synchronizations a step", waits)
    report.none_of(f"{name}: recompilations after warm-up", recompiled)


def eager_memory(report: Report, name: str, config: CausalFusionConfig, size: Size, device: torch.device) -> None:
    """Measure and judge the peak of memory in a step of the longest sequence, whose blocks are not compiled."""
    training = Training(config, size, device, compiled=False)
    length, [number, *_] = max(training.by_length().items())
    training.steps([number])  # afterwards AdamW's moments are there
    memory.forget_peak(device)
    training.steps([number])
    judge_memory(report, name, training, length, compiled=False)


def judge_memory(report: Report, name: str, training: Training, length: int, *, compiled: bool) -> None:
    """Compare the peak of memory with the estimate for the longest sequence, of so many tokens."""
    device, batch = training.device, training.size.batch
    form = attention_form(device, torch.bfloat16, length)
    expected = memory.estimate(training.config, batch=batch, length=length, form=form, compiled=compiled)
    peak, blocks = memory.peak(device), "compiled" if compiled else "eager"
    report.add(
        "memory",
        {
            "model": name,
            "blocks": blocks,
            "batch": batch,
            "length": length,
            "estimate_gib": expected / 2**30,
            "peak_gib": None if peak is None else peak / 2**30,
        },
    )
    report.near(f"{name}: peak of memory, {blocks} blocks", peak, expected)


def warm_up(training: Training, lengths: dict[int, list[int]], deadline: Deadline) -> list[int]:
    """Make a step of each length, which compiles it, while half of the time is left. Return the steps to time.

    Args:
        training: the steps.
        lengths: steps of each length, the most frequent first.
        deadline: that of the section.

    Returns:
        Steps of the lengths that are compiled, in their order.
    """
    half, warmed = deadline.left / 2, list[int]()
    for length, numbers in lengths.items():
        if warmed and deadline.left < half:
            break
        training.steps(numbers[:1])
        warmed.append(length)
    return sorted(number for length in warmed for number in lengths[length])


def synchronizations(report: Report, name: str, training: Training, numbers: Sequence[int]) -> float | None:
    """Return how often a step makes the host wait for the GPU, and report the places. None on a CPU."""
    if training.device.type != "cuda":
        return None
    training.steps(numbers)  # whatever happens once does not count
    with waiting.counted() as places:
        training.steps(numbers)
    for place, count in places.most_common(10):
        report.add("synchronizations", {"model": name, "at": place, f"in_{len(numbers)}_steps": count})
    return places.total() / len(numbers)


def graphs() -> int:
    """Return the graphs that torch.compile has made in this process."""
    return counters["stats"]["unique_graphs"]
