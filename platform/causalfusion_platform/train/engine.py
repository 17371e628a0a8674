"""The DeepSpeed engine: one code path from a CPU laptop to a GPU cluster."""

from __future__ import annotations

import os
from typing import Any, Literal

import torch

from causalfusion import Model

from ..config.schema import Experiment


def choose_precision(wanted: Literal["auto", "fp32", "bf16"], device: torch.device) -> Literal["fp32", "bf16"]:
    """Return the arithmetic of matrix products: `auto` is bf16 where the hardware multiplies in it.

    On a CPU that means AMX tiles or AVX512-BF16; without them bf16 is emulated, and slower than fp32.
    """
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported() else "fp32"


def deepspeed_config(experiment: Experiment, precision: Literal["fp32", "bf16"]) -> dict[str, Any]:
    """Return DeepSpeed's configuration for this experiment."""
    train = experiment.train
    return {
        "train_batch_size": train.global_batch_size,
        "train_micro_batch_size_per_gpu": train.global_batch_size // train.num_workers,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": experiment.optim.clip_grad_norm,
        "zero_optimization": {"stage": train.zero_stage},
        # The optimizer is torch's own: DeepSpeed's fused ones compile for minutes on a CPU.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        # Parameters stay fp32; DeepSpeed switches an outer torch.autocast off, so it must do this itself.
        "torch_autocast": {"enabled": precision == "bf16", "dtype": "bfloat16"},
        "steps_per_print": 2**31 - 1,
        "wall_clock_breakdown": False,
    }


def build_optimizer(model: Model, experiment: Experiment) -> torch.optim.Optimizer:
    """Return AdamW over all parameters (Tables 9 and 10)."""
    optim = experiment.optim
    return torch.optim.AdamW(
        model.parameters(),
        lr=experiment.learning_rate,
        betas=optim.betas,
        eps=optim.eps,
        weight_decay=optim.weight_decay,
        fused=True,
    )


def build_engine(
    model: Model, experiment: Experiment, device: torch.device, precision: Literal["fp32", "bf16"]
) -> Any:
    """Wrap the model in a DeepSpeed engine; torch.distributed must be initialised."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    import deepspeed
    import deepspeed.ops

    if device.type == "cpu":
        # Its shared-memory collectives compile for up to a minute at first use; gloo does the same work.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    model.to(device)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=build_optimizer(model, experiment),
        config=deepspeed_config(experiment, precision),
        dist_init_required=False,
    )
    return engine


def learning_rate_at(experiment: Experiment, images_seen: int) -> float:
    """Return the learning rate after `images_seen` images: linear warmup, then constant (Tables 9 and 10)."""
    warmup = experiment.optim.warmup_images
    return experiment.learning_rate * min(1.0, images_seen / warmup if warmup else 1.0)
