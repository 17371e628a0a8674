"""One training step of an experiment in a process of its own, so that a crash is a failed check."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from typing import Any

import torch

from causalfusion import PRESETS, CausalFusionConfig, ModelConfig

from ...config.errors import UserError
from ...config.schema import Experiment
from ...report.numbers import size
from ...tasks import open_task
from ...train.device import memory_in_use
from ...train.engine import build_engine, choose_precision, optimizer_step
from ...train.memory import estimate
from ...train.objective import ReadyStep
from .check import Check
from .machine import available_memory

_ROWS = 2
_TINY_VOCABULARY = 512


def check_step(experiment: Experiment, seconds: float = 300.0, command: tuple[str, ...] | None = None) -> Check:
    """Build the real engine of the task, and make one step on two rows of noise.

    Args:
        experiment: its task, model, optimizer and engine. The tiny model replaces one that does not fit here.
        seconds: time limit.
        command: command that gets the experiment on its input. None: `step` of this module.
    """
    small, note = _small(experiment)
    command = command or (sys.executable, "-m", __spec__.name)
    try:
        done = subprocess.run(
            command,
            input=small.model_dump_json(),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        advice = "look for other processes that are busy, or for a compiler at work: top"
        return Check("dry step", "FAIL", f"not done after {seconds:g} s{note}", advice)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        how = f"killed by signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
        fault = (done.stderr.strip().splitlines() or ["no reason given"])[-1][:200]
        advice = "causalfusion train smoke --local, for the whole message"
        return Check("dry step", "FAIL", f"{how}: {fault}{note}", advice)
    found = json.loads(lines[-1])
    if "fault" in found:
        fault, line, advice = found["fault"].partition("\n")
        return Check.failed("dry step", f"{fault}{note}{line}{advice}")
    line = (
        f"loss {found['loss']:.3f} in {found['seconds']:.1f} s, {found['precision']}, {size(found['bytes'])}{note}"
    )
    if not found["finite"]:
        return Check("dry step", "FAIL", line, "a loss or weight is not finite: try train.precision=fp32")
    return Check("dry step", "ok", line)


def _small(experiment: Experiment) -> tuple[Experiment, str]:
    stage = experiment.train.stage  # of all workers, so that the step is theirs
    changes: dict[str, Any] = {
        "num_workers": 1,
        "global_batch_size": _ROWS,
        "micro_batch_size": None,
        "zero_stage": stage,
    }
    if not torch.cuda.is_available():
        changes["gpus_per_worker"] = 0.0
    small = experiment.model_copy(update={"train": experiment.train.model_copy(update=changes), "sweep": None})
    need = estimate(open_task(small), workers=1, zero_stage=stage, precision="fp32")
    if small.train.gpus_per_worker or 2 * (need.total + need.host_total) < available_memory():
        return small, ""
    tiny = _tiny(experiment.model)
    return small.model_copy(update={"model": tiny}), "; a small model, since the experiment's does not fit here"


def _tiny(model: ModelConfig) -> ModelConfig:
    """Return a tiny model of the same architecture, with the same conditions."""
    if not isinstance(model, CausalFusionConfig):
        return PRESETS["digits-dit"]
    text = model.text and dataclasses.replace(model.text, vocabulary=min(model.text.vocabulary, _TINY_VOCABULARY))
    tiny = vars(PRESETS["tiny"]) | {"architecture": model.architecture, "text": text}
    if not model.num_class_tokens:
        tiny["class_tokens"] = 0
    return CausalFusionConfig(**tiny)


def step(experiment: Experiment) -> dict[str, Any]:
    """Make the step in this process.

    Returns:
        loss, seconds of the step, precision, peak memory in bytes, and whether weights and loss are finite.
    """
    gpu = experiment.train.gpus_per_worker > 0
    device = torch.device("cuda" if gpu else "cpu")
    os.environ.update({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"})
    store = torch.distributed.HashStore()  # type: ignore[attr-defined]
    torch.distributed.init_process_group("nccl" if gpu else "gloo", store=store, rank=0, world_size=1)
    precision = choose_precision(experiment.train.precision, device)
    torch.manual_seed(experiment.seed)
    task = open_task(experiment)
    model = task.build_model()
    objective = task.objective(model)
    groups = task.parameter_groups(model)
    engine = build_engine(model, experiment, device, precision, groups=groups)
    batch = task.example_batch(_ROWS)
    started = time.perf_counter()
    loss, _ = optimizer_step(engine, ReadyStep(objective.step(batch, 0), _ROWS, device))
    value = float(loss)
    weights = [getattr(weight, "ds_tensor", weight) for weight in engine.module.parameters()]
    finite = all(bool(weight.detach().isfinite().all()) for weight in weights)
    used = memory_in_use(device)
    return {
        "loss": value,
        "seconds": time.perf_counter() - started,
        "precision": precision,
        "bytes": used[0] if gpu else used[1],
        "finite": finite and abs(value) < float("inf"),
    }


def main() -> None:
    """Read an experiment, make its step, and print the result as one line of JSON."""
    experiment = Experiment.model_validate_json(sys.stdin.read())
    try:
        found = step(experiment)
    except UserError as error:
        found = {"fault": str(error)}
    print(json.dumps(found), flush=True)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
