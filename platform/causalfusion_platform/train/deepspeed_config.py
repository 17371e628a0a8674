"""DeepSpeed's configuration, derived from the experiment's."""

from __future__ import annotations

from typing import Any, Literal

import torch

from ..config.schema import Experiment, TrainConfig
from .pass_through import merged

Arithmetic = Literal["fp32", "tf32", "bf16", "bf16_weights", "fp16"]
"""`train.precision`, with `auto` resolved."""

OVERLAPPED_BUCKET = 50_000_000
"""Numbers in a bucket of gradients whose reduction overlaps with the backward pass.

DeepSpeed's own 500 million would hold all gradients of most models: the pass would end before it is full."""
_COMMUNICATED = {"fp32": "fp32", "tf32": "fp32", "bf16": "fp32", "bf16_weights": "bf16", "fp16": "fp16"}


def deepspeed_config(experiment: Experiment, precision: Arithmetic, device: torch.device) -> dict[str, Any]:
    """Return DeepSpeed's configuration for this experiment, `train.deepspeed` merged in."""
    train = experiment.train
    derived = {
        "train_batch_size": train.global_batch_size,
        "train_micro_batch_size_per_gpu": train.rows_at_once,
        "gradient_accumulation_steps": train.accumulation_steps,
        # With ZeRO 0 the optimizer clips (GuardedAdamW), since DeepSpeed keeps the norm to itself.
        "gradient_clipping": experiment.optim.clip_grad_norm if train.stage else 0.0,
        "zero_optimization": {
            "stage": train.stage,
            **_overlap(train, device),
            **_offload(train.offload, device),
        },
        # Named, so that another release of DeepSpeed reduces in the same numbers.
        "communication_data_type": _COMMUNICATED[precision],
        # The optimizer is torch's own: DeepSpeed's fused ones compile for minutes on a CPU.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        **_precision(precision),
        "steps_per_print": 2**31 - 1,
        "wall_clock_breakdown": False,
        # Its throughput timer waits for the device before and after every micro-batch, and nobody reads it.
        "timers": {"throughput": {"enabled": False}},
    }
    return merged(derived, train.deepspeed)


def _overlap(train: TrainConfig, device: torch.device) -> dict[str, Any]:
    """Reduce the gradients of one bucket on a stream of its own, while the backward pass fills the next."""
    if device.type != "cuda" or train.num_workers == 1 or train.stage not in (1, 2):
        return {}
    return {"overlap_comm": True, "reduce_bucket_size": OVERLAPPED_BUCKET}


def _precision(precision: Arithmetic) -> dict[str, Any]:
    # The buffers are the position sinusoids. Left in fp32, they would turn the tokens they are added to fp32.
    if precision == "bf16_weights":
        return {"bf16": {"enabled": True}, "data_types": {"buffer_dtype": "bf16"}}
    if precision == "fp16":
        return {"fp16": {"enabled": True, "loss_scale": 0}, "data_types": {"buffer_dtype": "fp16"}}  # 0: dynamic
    # Parameters stay fp32. DeepSpeed switches an outer torch.autocast off, so it must do this itself. Without this
    # list it would also divide and reduce the gradients of linear layers and convolutions in bf16, at ZeRO 1 to 3.
    in_bf16: list[str] = []
    return {
        "torch_autocast": {
            "enabled": precision == "bf16",
            "dtype": "bfloat16",
            "lower_precision_safe_modules": in_bf16,
        }
    }


def _offload(offload: Literal["none", "optimizer", "parameters"], device: torch.device) -> dict[str, Any]:
    place = {"device": "cpu", "pin_memory": device.type == "cuda"}
    sections = {
        "none": (),
        "optimizer": ("offload_optimizer",),
        "parameters": ("offload_optimizer", "offload_param"),
    }
    return dict.fromkeys(sections[offload], place)
