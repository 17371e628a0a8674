"""Resuming with another number of ranks through DeepSpeed's universal format, one file per parameter and state."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from .engine_state import TAG, load_engine, plain_path, weights_only

ENGINE_CONFIG: dict[str, Any] = {"checkpoint": {"load_universal": True}}
"""Required part of DeepSpeed's configuration for `load_universal`."""


def reshardable(old_stage: int, old_world: int, new_stage: int, new_world: int) -> str | None:
    """Return the reason why a checkpoint cannot be resumed at another ZeRO stage and number of ranks, or None.

    Tried with DeepSpeed 0.19: any number of ranks works at every stage. ZeRO 1 and 2 keep the same state. The state
    of ZeRO 0 is not split, and that of ZeRO 3 has its step counts elsewhere. DeepSpeed converts neither.
    """
    if old_stage == new_stage or {old_stage, new_stage} <= {1, 2}:
        return None
    return (
        f"it was written by {old_world} workers with ZeRO stage {old_stage}, and DeepSpeed cannot turn that into "
        f"stage {new_stage} with {new_world}: only stages 1 and 2 go into one another"
    )


def needs_conversion(old_stage: int, old_world: int, new_stage: int, new_world: int) -> bool:
    """Return True if a checkpoint must go through `convert`. Otherwise `load_engine` reads it bit for bit.

    ZeRO 0 keeps the whole state in one file, which any number of ranks reads.
    """
    return old_stage > 0 and (old_stage, old_world) != (new_stage, new_world)


def convert(engine_folder: Path, out: Path, stage: int) -> Path:
    """Convert what `save_engine` wrote at ZeRO 1, 2 or 3 into the universal format, and return `out`.

    One process converts for all ranks, and `out` must be readable by all. It needs disk space for twice the fp32
    weights and both moments, half of which is freed at the end. It runs in a separate Python process, because
    DeepSpeed's converter forks.

    Raises:
        RuntimeError: a file was not written by DeepSpeed or holds code, which was not run, or the disk is full.
    """
    command = [sys.executable, "-m", __name__, str(engine_folder), str(out), str(stage)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace", check=False
    )
    if done.returncode:
        raise RuntimeError(f"{engine_folder} cannot be converted into {out}:\n{done.stdout[-2000:]}")
    return out


def convert_here(engine_folder: Path, out: Path, stage: int, processes: int = 1) -> Path:
    """Run `convert` in this process, or in its forks if `processes` is above 1."""
    from deepspeed.checkpoint import ds_to_universal

    out.mkdir(parents=True, exist_ok=True)
    with weights_only(), plain_path(engine_folder) as source, plain_path(out) as target:
        arguments = argparse.Namespace(
            input_folder=str(source / TAG),
            output_folder=str(target / TAG),
            num_extract_workers=processes,
            num_merge_workers=processes,
            keep_temp_folder=False,
            strict=True,
            inject_missing_state=stage < 3,
        )
        ds_to_universal.main(arguments)
    return out


def load_universal(engine: Any, folder: Path) -> None:
    """Restore an engine from the output of `convert`. Its configuration must include `ENGINE_CONFIG`.

    All ranks call it together. The number of ranks may be any. `reshardable` says which stages work.

    Raises:
        pickle.UnpicklingError: a file holds code, which was not run.
    """
    load_engine(engine, folder)
    optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    for parameter, state in optimizer.state.items():
        if "step" in state:
            # DeepSpeed gives all partitions of ZeRO 3 the same tensor, which each of them would increment. It also
            # leaves it on the CPU, where a fused AdamW on a GPU cannot use it.
            state["step"] = state["step"].to(parameter.device, copy=True)


if __name__ == "__main__":
    convert_here(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), processes=min(4, os.cpu_count() or 1))
