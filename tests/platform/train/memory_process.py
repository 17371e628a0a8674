"""One rank of `test_memory`: build real engines, make a step, count the bytes of their tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tests.platform.config.trees import load_experiment
from tests.platform.train.zero_process import BATCH, batch, bytes_held, new_model
from torch import Tensor

from causalfusion_platform.checkpoint.engine_state import save_engine
from causalfusion_platform.tasks.class_to_image import ClassToImageObjective
from causalfusion_platform.train.ema import Averages
from causalfusion_platform.train.ema_profiles import profiles_of
from causalfusion_platform.train.engine import build_engine, optimizer_step
from causalfusion_platform.train.objective import ReadyStep

CASES = {
    "0": ["train.zero_stage=0", "train.precision=fp32"],
    "1": ["train.zero_stage=1", "train.precision=fp32"],
    "1 three averages": ["train.zero_stage=1", "optim.ema_more_decays=[0.9]", "optim.ema_power=[0.1]"],
    "2": ["train.zero_stage=2", "train.precision=bf16"],
    "3": ["train.zero_stage=3", "train.precision=fp32"],
    "2 bf16 weights": ["train.zero_stage=2", "train.precision=bf16_weights"],
    "3 bf16 weights": ["train.zero_stage=3", "train.precision=bf16_weights"],
}


def overrides(case: str, world: int) -> list[str]:
    return [
        "train.precision=bf16",
        *CASES[case],
        f"train.num_workers={world}",
        f"train.global_batch_size={BATCH}",
    ]


def nbytes(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def count(case: str, rank: int, world: int, folder: Path) -> dict[str, int]:
    experiment = load_experiment("smoke", overrides(case, world))
    model = new_model(experiment)
    objective = ClassToImageObjective(model, experiment)
    precision: Any = experiment.train.precision
    engine = build_engine(model, experiment, torch.device("cpu"), precision)
    averages = Averages(engine.module, profiles_of(experiment.optim))
    rows = batch(0, rank, world)
    optimizer_step(engine, ReadyStep(objective.step(rows, 0), experiment.train.rows_at_once, torch.device("cpu")))
    zero = engine.optimizer
    masters = getattr(zero, "single_partition_of_fp32_groups", getattr(zero, "fp32_partitioned_groups_flat", []))
    weights: list[Any] = list(engine.module.parameters())
    save_engine(engine, folder)
    torch.distributed.barrier()
    return {
        "parameters": nbytes([getattr(weight, "ds_tensor", weight) for weight in weights]),
        "masters": nbytes(masters),
        "moments": nbytes(
            [
                state[name]
                for state in engine.basic_optimizer.state.values()
                for name in ("exp_avg", "exp_avg_sq")
                if name in state
            ]
        ),
        "averages": bytes_held(averages),
        "saved": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
    }


def run(rank: int, world: int, folder: Path) -> dict[str, dict[str, int]]:
    """Count in all cases as one rank."""
    return {case: count(case, rank, world, folder / f"engine-{world}-{case}") for case in CASES}
