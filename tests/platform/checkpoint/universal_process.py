"""One rank of `test_universal`: train, save; load what another number of ranks has saved, and train on."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from tests.malicious import MakesFolder
from tests.platform.checkpoint.universal_cases import (
    BATCH,
    CASES,
    FROM,
    OTHER_STAGE,
    STEPS_AFTER,
    STEPS_BEFORE,
    TO_FOUR,
)
from tests.platform.ranks import wait_for
from torch import Tensor, nn

from causalfusion_platform.checkpoint.engine_state import load_engine, save_engine
from causalfusion_platform.checkpoint.universal import (
    ENGINE_CONFIG,
    convert_here,
    load_universal,
    needs_conversion,
)


def build(case: str, world: int, *, universal: bool = False) -> Any:
    """Return an engine; no size of a parameter of its model is a multiple of the number of ranks."""
    import deepspeed
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    stage, changes = CASES[case]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.GELU(), nn.Linear(5, 7, bias=False), nn.GELU(), nn.Linear(7, 1))
    config = {
        "train_batch_size": BATCH,
        "train_micro_batch_size_per_gpu": BATCH // world,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31 - 1,
    }
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, betas=(0.9, 0.95), fused=True)
    config |= changes | (ENGINE_CONFIG if universal else {})
    return deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)[0]


def step(engine: Any, number: int, rank: int, world: int) -> float:
    generator = torch.Generator().manual_seed(number)
    x = torch.randn(BATCH, 3, generator=generator)
    target = x.sum(1, keepdim=True).sin()
    rows = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    out = engine(x[rows].to(next(engine.module.parameters()).dtype))
    loss = (out.float() - target[rows]).square().mean()
    engine.backward(loss)
    engine.step()
    mean = loss.detach().clone()
    torch.distributed.all_reduce(mean)
    return float(mean) / world


def state_of(engine: Any, stage: int) -> dict[str, list[Tensor]]:
    """Name → fp32 master and both moments, gathered by DeepSpeed itself; and the step counts."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    state: dict[str, list[Tensor]] = {}
    for name, parameter in engine.module.named_parameters():
        if stage == 0:
            own = engine.optimizer.state[parameter]
            state[name] = [parameter.detach().clone(), own["exp_avg"].clone(), own["exp_avg_sq"].clone()]
        else:
            moments = [safe_get_full_optimizer_state(parameter, key) for key in ("exp_avg", "exp_avg_sq")]
            state[name] = [tensor.clone() for tensor in (safe_get_full_fp32_param(parameter), *moments)]
    return state


def step_counts(engine: Any) -> list[float]:
    optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    return sorted({float(state["step"]) for state in optimizer.state.values()})


def save_all(rank: int, world: int, folder: Path) -> None:
    """Each rank into a folder of its own; put together afterwards, as storage does."""
    for case, (stage, _) in CASES.items():
        engine = build(case, world)
        for number in range(STEPS_BEFORE):
            step(engine, number, rank, world)
        save_engine(engine, folder / f"{case}-{world}-rank-{rank}")
        state = state_of(engine, stage)
        losses = [step(engine, number, rank, world) for number in range(STEPS_BEFORE, STEPS_BEFORE + STEPS_AFTER)]
        torch.distributed.barrier()
        if rank == 0:
            together = folder / f"{case}-{world}"
            for other in range(world):
                for path in (folder / f"{case}-{world}-rank-{other}").rglob("*"):
                    if path.is_file():
                        target = together / path.relative_to(folder / f"{case}-{world}-rank-{other}")
                        target.parent.mkdir(parents=True, exist_ok=True)
                        assert not target.exists(), target
                        shutil.copy(path, target)
            torch.save({"state": state, "losses": losses}, folder / f"{case}-{world}.reference")
            if stage:
                convert_here(together, folder / f"{case}-{world}-universal", stage)
    if rank == 0:
        (folder / f"saved-{world}").touch()


def resume(case: str, target: str, old: int, rank: int, world: int, folder: Path) -> dict[str, Any]:
    """Load what `old` ranks saved, and compare with what they had and did."""
    (old_stage, _), (stage, _) = CASES[case], CASES[target]
    universal = needs_conversion(old_stage, old, stage, world)
    engine = build(target, world, universal=universal)
    if universal:
        load_universal(engine, folder / f"{case}-{old}-universal")
    else:
        load_engine(engine, folder / f"{case}-{old}")
    reference = torch.load(folder / f"{case}-{old}.reference")
    state, counts = state_of(engine, stage), step_counts(engine)
    numbers = range(STEPS_BEFORE, STEPS_BEFORE + STEPS_AFTER)
    return {
        "different": [
            name
            for name, tensors in reference["state"].items()
            if not all(torch.equal(a, b) for a, b in zip(tensors, state[name], strict=True))
        ],
        "moved": float(reference["state"]["0.weight"][2].abs().max()),
        "steps": counts,
        "expected": reference["losses"],
        "losses": [step(engine, number, rank, world) for number in numbers],
        "steps_after": step_counts(engine),
    }


def save_where_one_rank_cannot(rank: int, world: int, folder: Path) -> str:
    """The second rank's folder cannot be made; all ranks come back, and train on together."""
    engine = build("zero-1", world)
    (folder / "a file").touch()
    raised = ""
    try:
        save_engine(engine, folder / ("a file/engine" if rank else "broken"))
    except OSError as error:
        raised = str(error)
    step(engine, 0, rank, world)
    told: list[Any] = [None] * world
    torch.distributed.all_gather_object(told, raised)
    return json.dumps(told)


def load_malicious(folder: Path) -> bool:
    """Say whether a universal file with code in it was refused, and the code not run."""
    copy = shutil.copytree(folder / "zero-1-2-universal", folder / "malicious")
    torch.save({"param": torch.zeros(5, 3), "more": MakesFolder(folder / "made")}, next(copy.rglob("fp32.pt")))
    try:
        load_universal(build("zero-1", 1, universal=True), copy)
    except pickle.UnpicklingError:
        return not (folder / "made").exists()
    return False


def run(rank: int, world: int, folder: Path) -> dict[str, Any]:
    """Save as one rank, and load what the group of another size saved."""
    if world < 4:
        save_all(rank, world, folder)
    old = FROM[world]
    wait_for(folder / f"saved-{old}")
    pairs = [(case, case) for case in (CASES if world < 4 else TO_FOUR)]
    if world < 4:
        pairs += OTHER_STAGE.items()
    results: dict[str, Any] = {
        f"{case} → {target}": resume(case, target, old, rank, world, folder) for case, target in pairs
    }
    if world == 2:
        results["broken"] = save_where_one_rank_cannot(rank, world, folder)
    if world == 1:
        results["malicious refused"] = load_malicious(folder)
    return results
