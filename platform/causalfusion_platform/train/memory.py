"""Memory of a worker in training: exact where DeepSpeed's partitions decide it, else an estimate."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from causalfusion import ModelConfig, count_parameters
from causalfusion.baselines.dit import DiTConfig
from causalfusion.factorization.sequence import lay_out
from causalfusion.factorization.steps import equal_step_sizes

from ..config.schema import Experiment
from .ema_profiles import profiles_of

Part = Literal["parameters", "masters", "moments", "averages", "gradients", "buckets", "activations"]
EXACT: tuple[Part, ...] = ("parameters", "masters", "moments", "averages")
"""Parts that are exact but for the padding of partitions. The others are estimates."""

_BUCKET = 500_000_000  # DeepSpeed's reduce_bucket_size, in numbers


@dataclass(frozen=True)
class Memory:
    """Bytes that one worker holds."""

    device: dict[Part, float]
    """On the GPU, or without one in the process's memory."""
    host: dict[Part, float]
    """In the CPU's memory beside a GPU, moved there by `train.offload`."""

    @property
    def total(self) -> float:
        """All that is on the device."""
        return sum(self.device.values())

    @property
    def host_total(self) -> float:
        """All that is in the CPU's memory beside a GPU."""
        return sum(self.host.values())


def estimate(experiment: Experiment, *, workers: int, zero_stage: int, precision: str = "auto") -> Memory:
    """Estimate the memory of one worker of an experiment.

    Exact but for padding (P parameters, w workers, in bytes):

    - parameters: 4 P, or 2 P with weights of 16 bits. ZeRO 3 holds 1/w of it, and the layers in use whole.
    - masters: 4 P / w at ZeRO 1–3, where DeepSpeed keeps an fp32 copy of each worker's part.
    - moments: 8 P of AdamW, at ZeRO 1–3 divided by w.
    - averages: 4 P for each average of the weights, at ZeRO 1–3 divided by w.

    Estimates:

    - gradients: whole at ZeRO 0 and 1, 1/w at 2 and 3, and the fp32 ones of the step.
    - buckets of DeepSpeed's collectives.
    - activations: see `activation_bytes`.

    Libraries and CUDA's own 1 to 2 GiB come on top.

    Args:
        experiment: the experiment to train.
        workers: number of workers that share the global batch.
        zero_stage: 0 to 3.
        precision: value of `auto` on the device, fp32 or bf16. Other precisions are the experiment's own.
    """
    train = experiment.train
    precision = train.precision if train.precision != "auto" else precision
    parameters = _count(experiment.model)
    weight = 2 if precision in ("bf16_weights", "fp16") else 4
    share = workers if zero_stage >= 1 else 1
    rows = train.micro_batch_size or max(train.global_batch_size // workers, 1)
    reduced = parameters / (workers if zero_stage >= 2 else 1)
    held: dict[Part, float] = {
        "parameters": weight * parameters / (workers if zero_stage == 3 else 1),
        "masters": 4 * parameters / share if zero_stage else 0.0,
        "moments": 8 * parameters / share,
        "averages": 4 * parameters / share * len(profiles_of(experiment.optim)),
        "gradients": weight * reduced + (4 * parameters / share if zero_stage else 0.0),
        "buckets": _buckets(experiment, parameters, zero_stage, weight),
        "activations": activation_bytes(experiment, rows, precision),
    }
    gpu = train.gpus_per_worker > 0
    moved: tuple[Part, ...] = ()
    if gpu and train.offload != "none" and zero_stage:
        moved = ("masters", "moments", "averages")
        if train.offload == "parameters" and zero_stage == 3:
            moved = ("parameters", *moved)
    return Memory(
        device={part: size for part, size in held.items() if part not in moved},
        host={part: size for part, size in held.items() if part in moved},
    )


def checkpoint_bytes(experiment: Experiment, precision: str = "auto") -> float:
    """Estimate the size of one checkpoint: the engine's weights and optimizer state, and every average.

    Args:
        experiment: the experiment to train.
        precision: as in `estimate`.
    """
    whole = estimate(experiment, workers=1, zero_stage=experiment.train.zero_stage, precision=precision)
    return sum({**whole.device, **whole.host}[part] for part in EXACT)


def longest_sequence(experiment: Experiment) -> int:
    """Return the tokens of the longest training sequence, padding included: the last AR step has one token."""
    model, objective = experiment.model, experiment.objective
    tokens = model.num_tokens
    if objective.num_ar_steps is not None:
        sizes = equal_step_sizes(tokens, objective.num_ar_steps)
    elif objective.ar_decay == 0 or tokens == 1 or isinstance(model, DiTConfig):
        sizes = [tokens]
    else:
        sizes = [tokens - 1, 1]
    time_token = not isinstance(model, DiTConfig) and model.time_conditioning == "token"
    layout = lay_out(
        sizes,
        class_tokens=model.num_class_tokens,
        copies=objective.time_copies,
        time_token=time_token,
        multiple=objective.sequence_multiple,
    )
    return len(layout)


def activation_bytes(experiment: Experiment, rows: int, precision: str) -> float:
    """Estimate the bytes that `rows` images keep for the backward pass, for the longest sequence.

    D is the width of the model and M that of the MLP. In a block each token keeps

    - 2 D numbers in the precision of the residual stream: the inputs of the layer norms.
    - 8 D and 2 M numbers in the precision of products. The 8 D are their inputs, queries and keys before and after
      their norms, and values.
    - 3 D more in a DiT, for its modulation.

    Recomputing keeps D a block, and one block whole. With autocast the weights in 16 bits come on top. The N²
    scores of attention are not counted, since kernels do not keep them at lengths where they matter.
    """
    model = experiment.model
    product = 4 if precision == "fp32" else 2
    residual = 2 if precision in ("bf16_weights", "fp16") else 4
    width, tokens = model.hidden_size, rows * longest_sequence(experiment)
    more = 3 * residual * width if isinstance(model, DiTConfig) else 0
    block = tokens * (2 * residual * width + 8 * product * width + 2 * product * model.mlp_size + more)
    blocks = model.depth * block
    if experiment.train.activation_checkpointing:
        blocks = model.depth * tokens * residual * width + block
    cast = 2 * _count(model) if precision == "bf16" else 0
    return float(blocks + cast)


def _buckets(experiment: Experiment, parameters: int, zero_stage: int, weight: int) -> float:
    """Return the bytes of gradient buckets, and at ZeRO 3 of the layers that are whole at the moment.

    DeepSpeed allocates a full bucket, however small the model. A CPU gives memory only to the part that is written.
    """
    if zero_stage == 0:
        return 0.0
    zero = experiment.train.deepspeed.get("zero_optimization", {})
    bucket = float(zero.get("reduce_bucket_size", _BUCKET))
    if not experiment.train.gpus_per_worker:
        bucket = min(bucket, parameters)
    whole_layers = 2 * parameters / experiment.model.depth if zero_stage == 3 else 0.0
    return (bucket + whole_layers) * weight


@lru_cache(maxsize=64)
def _count(model: ModelConfig) -> int:
    return count_parameters(model)
