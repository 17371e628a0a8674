"""Memory of a worker in training: exact where DeepSpeed's partitions decide it, else an estimate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from causalfusion.memory import working_bytes

from ..config.schema import Experiment
from .deepspeed_config import OVERLAPPED_BUCKET
from .ema_profiles import profiles_of

Part = Literal[
    "parameters",
    "masters",
    "moments",
    "averages",
    "gradients",
    "buckets",
    "activations",
    "sampler",
    "whole average",
]
EXACT: tuple[Part, ...] = ("parameters", "masters", "moments", "averages")
"""Parts that are exact but for the padding of partitions. The others are estimates."""

_BUCKET = 500_000_000  # DeepSpeed's reduce_bucket_size, in numbers


@dataclass(frozen=True)
class ModelSize:
    """Size of a model, as far as memory depends on it."""

    parameters: int
    blocks: int = 1
    """Blocks that run one after the other. ZeRO 3 gathers one of them at a time."""
    frozen: int = 0
    """Those of the parameters that are not trained."""
    samples: bool = False
    """Whether a second model in fp32 is there from the start, to draw samples with the averages' weights."""


class Sized(Protocol):
    """Part of a task that memory depends on."""

    experiment: Experiment

    @property
    def size(self) -> ModelSize:
        """Size of the model."""

    def activation_bytes(self, rows: int, precision: str, /) -> float | None:
        """Estimate the bytes that `rows` rows keep for the backward pass. None: not estimated."""


@dataclass(frozen=True)
class Memory:
    """Bytes that one worker holds."""

    device: dict[Part, float]
    """On the GPU, or without one in the process's memory."""
    host: dict[Part, float]
    """In the CPU's memory beside a GPU, moved there by `train.offload`."""

    accumulates: bool
    """Whether several passes add up their gradients."""

    @property
    def total(self) -> float:
        """The most that is on the device at a time.

        The backward pass frees activations while it makes gradients. So the larger of them counts, unless an
        earlier pass has left gradients. A grid or a checkpoint gathers an average between two steps, when both are
        gone.
        """
        passing: tuple[Part, ...] = ("gradients", "activations", "buckets", "whole average")
        held = {part: self.device.get(part, 0.0) for part in passing}
        pair = held["gradients"], held["activations"]
        step = held["buckets"] + (sum(pair) if self.accumulates else max(pair))
        stays = sum(count for part, count in self.device.items() if part not in passing)
        return stays + max(step, held["whole average"])

    @property
    def host_total(self) -> float:
        """All that is in the CPU's memory beside a GPU."""
        return sum(self.host.values())


def estimate(task: Sized, *, workers: int, zero_stage: int, precision: str = "auto") -> Memory:
    """Estimate the memory of one worker.

    Exact but for padding (P parameters, w workers, in bytes):

    - parameters: 4 P, or 2 P with weights of 16 bits. ZeRO 3 holds 1/w of it, and the layers in use whole.
    - masters: 4 P / w at ZeRO 1–3, where DeepSpeed keeps an fp32 copy of each worker's part.
    - moments: 8 P of AdamW, at ZeRO 1–3 divided by w.
    - averages: 4 P for each average of the weights, at ZeRO 1–3 divided by w.

    Frozen parameters have no masters, moments or gradients, and ZeRO 1 and 2 divide no average of them.

    Estimates:

    - gradients: whole at ZeRO 0 and 1, 1/w at 2 and 3, and the fp32 ones of the step.
    - buckets of DeepSpeed's collectives.
    - activations: the task estimates them, or leaves them out. The block whose backward pass goes on holds half as
      much again as it keeps.
    - sampler: 4 P for the model that draws samples.
    - whole average: 4 P while a grid or a checkpoint is made.

    Libraries and CUDA's own 1 to 2 GiB come on top.

    Args:
        task: task of the experiment to train.
        workers: number of workers that share the global batch.
        zero_stage: 0 to 3.
        precision: value of `auto` on the device, fp32 or bf16. Other precisions are the experiment's own.
    """
    experiment, size = task.experiment, task.size
    train, parameters, trained = experiment.train, size.parameters, size.parameters - size.frozen
    precision = train.precision if train.precision != "auto" else precision
    weight = 2 if precision in ("bf16_weights", "fp16") else 4
    share = workers if zero_stage >= 1 else 1
    frozen = size.frozen / (workers if zero_stage == 3 else 1)
    rows = train.micro_batch_size or max(train.global_batch_size // workers, 1)
    reduced = trained / (workers if zero_stage >= 2 else 1)
    held: dict[Part, float] = {
        "parameters": weight * parameters / (workers if zero_stage == 3 else 1),
        "masters": 4 * trained / share if zero_stage else 0.0,
        "moments": 8 * trained / share,
        "averages": 4 * (trained / share + frozen) * len(profiles_of(experiment.optim)),
        "gradients": weight * reduced + (4 * trained / share if zero_stage else 0.0),
        "buckets": _buckets(experiment, size, zero_stage, weight, workers),
        "whole average": 4 * parameters,
    }
    if size.samples:
        held["sampler"] = 4 * parameters
    activations = task.activation_bytes(rows, precision)
    if activations is not None:
        held["activations"] = working_bytes(activations, size.blocks)
    gpu = train.gpus_per_worker > 0
    moved: tuple[Part, ...] = ()
    if gpu and train.offload != "none" and zero_stage:
        moved = ("masters", "moments", "averages")
        if train.offload == "parameters" and zero_stage == 3:
            moved = ("parameters", *moved)
    return Memory(
        device={part: count for part, count in held.items() if part not in moved},
        host={part: count for part, count in held.items() if part in moved},
        accumulates=rows < train.global_batch_size // workers,
    )


def checkpoint_bytes(task: Sized, precision: str = "auto") -> float:
    """Estimate the size of one checkpoint: the engine's weights and optimizer state, and every average.

    Args:
        task: task of the experiment to train.
        precision: as in `estimate`.
    """
    whole = estimate(task, workers=1, zero_stage=task.experiment.train.stage, precision=precision)
    return sum({**whole.device, **whole.host}[part] for part in EXACT)


def _buckets(experiment: Experiment, size: ModelSize, zero_stage: int, weight: int, workers: int) -> float:
    """Return the bytes of gradient buckets, and at ZeRO 3 of the layers that are whole at the moment.

    DeepSpeed allocates a full bucket, however small the model. A CPU gives memory only to the part that is written.
    """
    if zero_stage == 0:
        return 0.0
    zero = experiment.train.deepspeed.get("zero_optimization", {})
    overlapped = bool(experiment.train.gpus_per_worker) and workers > 1 and zero_stage in (1, 2)
    bucket = float(zero.get("reduce_bucket_size", OVERLAPPED_BUCKET if overlapped else _BUCKET))
    if zero.get("overlap_comm", overlapped) and zero_stage in (1, 2):
        bucket *= 2  # one is reduced while the other fills
    if not experiment.train.gpus_per_worker:
        bucket = min(bucket, size.parameters)
    whole_layers = 2 * size.parameters / size.blocks if zero_stage == 3 else 0.0
    return (bucket + whole_layers) * weight
