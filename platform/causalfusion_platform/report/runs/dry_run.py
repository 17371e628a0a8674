"""The panel of `train --dry-run`: the plan of a run, its needs, and its cost."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ...config.schema import Experiment, Precision
from ...train.device import Peak, peak_of, products_in
from ...train.memory import Memory
from ..numbers import size
from ..terminal import as_path

_ASSUMED_MFU = 0.4
ZERO3_PARAMETERS = 3_000_000_000
"""Parameters below which the states of ZeRO 1 or 2 fit on a GPU of 80 GB, with some workers to divide them."""
_GPUS = ("NVIDIA A100-SXM4-80GB", "NVIDIA H100 80GB HBM3")


@dataclass(frozen=True)
class DataPlan:
    """The data as far as it is known."""

    rows: int | None
    shape: tuple[int, ...] | None
    source: str | None
    state: str
    """That it is there, or the fault and its remedy."""


@dataclass(frozen=True)
class Plan:
    """The training of an experiment, as planned."""

    experiment: Experiment
    changed: Mapping[str, Any]
    """Keys that differ from the defaults."""
    data: DataPlan
    parameters: int
    model: str
    """Sizes of the model, in words. Empty: the task does not describe it."""
    precision: str
    """With `auto` decided."""
    warmup: float | None
    """Images. None: it is in epochs, and the rows of the data are not known."""
    flops: float | None
    """Of the whole run, on average over steps. None: not known before it."""
    checkpoint_bytes: float
    memory: Mapping[int, Memory | None]
    """ZeRO stage → memory of a worker. None where the precision does not go with the stage."""
    cpu_peak: Peak
    """Of this machine, in that precision."""


def plan_panel(plan: Plan, command: str) -> Panel:
    """Return the whole plan in 80 columns.

    Args:
        plan: what was worked out.
        command: the experiment and its overrides, as they were typed.
    """
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="bold", no_wrap=True)
    rows.add_column(overflow="fold")
    for name, text in (
        ("config", _config(plan, command)),
        ("data", _data(plan)),
        ("model", _model(plan)),
        ("batch", _batch(plan)),
        ("steps", _steps(plan)),
        ("checkpoints", _checkpoints(plan)),
        ("cost", _cost(plan)),
    ):
        rows.add_row(name, escape(text))
    folder = Text.assemble(("run folder   ", "bold"), as_path(plan.experiment.run_dir), " (nothing was written)")
    title = f"plan of {plan.experiment.name}"
    return Panel(Group(rows, _memory(plan), folder), title=title, title_align="left", expand=True)


def _config(plan: Plan, command: str) -> str:
    model = {key: value for key, value in plan.changed.items() if key.startswith("model.")}
    rest = {key: value for key, value in plan.changed.items() if key not in model and key != "description"}
    lines = [" ".join(f"{key}={_value(value)}" for key, value in part.items()) for part in (rest, model)]
    lines.append(f"all keys: {command}")
    return "\n".join(line for line in lines if line)


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _data(plan: Plan) -> str:
    data = plan.data
    where = as_path(plan.experiment.data.path)
    if data.rows is None or data.shape is None:
        return data.state
    epochs = plan.experiment.train.total_images / data.rows
    shape = "×".join(map(str, data.shape))
    return f"{where}: {data.rows:,} latents of {shape}; {epochs:.3g} epochs\n{data.source}; {data.state}"


def _model(plan: Plan) -> str:
    return f"{plan.parameters:,} parameters{': ' if plan.model else ''}{plan.model}"


def _batch(plan: Plan) -> str:
    train = plan.experiment.train
    device = f"{train.gpus_per_worker:g} GPU" if train.gpus_per_worker else f"{train.cpus_per_worker:g} CPU"
    parts = f"{train.rows_at_once} at once × {train.accumulation_steps} accumulated × {train.num_workers} workers"
    return (
        f"{train.global_batch_size} images = {parts}\n{device} each, ZeRO {train.stage}, {plan.precision}"
        f"{_stage_note(plan)}"
    )


def _stage_note(plan: Plan) -> str:
    """Return more about the ZeRO stage, in words, or nothing."""
    train = plan.experiment.train
    if train.stage == 3 and train.offload != "parameters" and plan.parameters < ZERO3_PARAMETERS:
        return (
            f"\nZeRO 3 gathers the weights of each layer twice a step and has a slower form of linear layers. "
            f"Below {ZERO3_PARAMETERS / 1e9:g} billion parameters train.zero_stage=1 or 2 is faster where it fits"
        )
    if train.stage == 0 and train.num_workers > 1:
        return "\nZeRO 0 keeps the whole optimizer state on each worker: train.zero_stage=1 divides it"
    return ""


def _steps(plan: Plan) -> str:
    experiment = plan.experiment
    warmup = f"warmup {experiment.optim.warmup_epochs:g} epochs" if plan.warmup is None else ""
    if plan.warmup is not None:
        warmup = f"warmup {plan.warmup:,.0f} images" if plan.warmup else "no warmup"
    return (
        f"{experiment.train.steps:,} steps, {experiment.train.total_images:,} images; learning rate "
        f"{experiment.learning_rate:.3g}, {warmup}"
    )


def _checkpoints(plan: Plan) -> str:
    made, kept = checkpoints_made_and_kept(plan.experiment)
    return (
        f"{made}, every {plan.experiment.train.checkpoint_every_images:,} images, about "
        f"{size(plan.checkpoint_bytes)} each\n{kept} stay; with one being written "
        f"{size(disk_needed(plan.experiment, plan.checkpoint_bytes))} of disk"
    )


def checkpoints_made_and_kept(experiment: Experiment) -> tuple[int, int]:
    """Return how many checkpoints a run writes, and how many of them retention leaves at most."""
    train = experiment.train
    total, every = train.total_images, train.checkpoint_every_images
    made = total // every + (total % every > 0)
    for_good = total // train.keep_every_images if train.keep_every_images else 0
    return made, min(made, train.keep_checkpoints + train.keep_best + for_good)


def disk_needed(experiment: Experiment, checkpoint_bytes: float) -> float:
    """Return the bytes of all checkpoints that stay, and of one more: it is written before an old one goes."""
    return (checkpoints_made_and_kept(experiment)[1] + 1) * checkpoint_bytes


def _cost(plan: Plan) -> str:
    if plan.flops is None:
        return f"not known: task={plan.experiment.task} does not state its FLOPs"
    lines = [f"{plan.flops:.3g} FLOPs, forward and backward, of what the mask shows"]
    lines.append(f"GPU-hours, {gpu_hours([(plan.flops, plan.experiment.train.precision)])}")
    if plan.cpu_peak.tflops:
        least = _hours(plan.flops / plan.cpu_peak.tflops / 1e12)
        lines.append(
            f"on a CPU like this at least {least} hours, at its peak of {plan.cpu_peak.tflops:.3g} TFLOP/s "
            f"({plan.cpu_peak.source})"
        )
    return "\n".join(lines)


def gpu_hours(trainings: Iterable[tuple[float, Precision]]) -> str:
    """Return the GPU-hours that trainings take on well-known GPUs, with what is assumed.

    Args:
        trainings: FLOPs and `train.precision` of each.
    """
    work = [(flops, products_in(precision, "cuda")) for flops, precision in trainings]
    hours = []
    for name in _GPUS:
        seconds = 0.0
        for flops, arithmetic in work:
            tflops = peak_of(name, arithmetic).tflops
            assert tflops
            seconds += flops / (tflops * 1e12 * _ASSUMED_MFU)
        hours.append(f"{_hours(seconds)} on {name.split()[1].split('-')[0]}")
    used = " and ".join(dict.fromkeys(arithmetic for _, arithmetic in work))
    return f"assuming {_ASSUMED_MFU:.0%} MFU in {used}: {', '.join(hours)}"


def _hours(seconds: float) -> str:
    hours = seconds / 3600
    if hours < 0.01:
        return "under 0.01"
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.2g}"


def _memory(plan: Plan) -> Table:
    workers = plan.experiment.train.num_workers
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), title_justify="left", title_style="bold")
    table.title = f"memory of each of {workers} workers" if workers > 1 else "memory of the worker"
    names = ("ZeRO", "weights", "optimizer", "averages", "gradients", "activations", "peak", "on host")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for stage, memory in plan.memory.items():
        marked = f"{'→ ' if stage == plan.experiment.train.stage else ''}{stage}"
        if memory is None:
            table.add_row(marked, *["–"] * 7)
            continue
        parts = {**memory.device, **memory.host}
        table.add_row(
            marked,
            size(parts["parameters"]),
            size(parts["masters"] + parts["moments"]),
            size(parts["averages"] + parts.get("sampler", 0.0)),
            size(parts["gradients"] + parts["buckets"]),
            size(parts["activations"]) if "activations" in parts else "–",
            size(memory.total),
            size(memory.host_total) if memory.host else "–",
        )
    return table
