"""The commands: `train --local`, its continuation, training under Ray, and samples of the trained weights."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch

from causalfusion import CausalFusion, load_weights

from .model import same_samples
from .outcome import Outcome, at_most, left_out

PLATFORM = ("deepspeed", "hydra", "pydantic", "pyarrow", "mlflow", "sklearn", "typer")
"""Libraries that `train --local` needs."""
IMAGES = 6400


def check(device: torch.device, seconds: float, folder: Path, images: int = IMAGES) -> list[Outcome]:
    """Train the quickstart's experiment on a device, continue it, do the same under Ray, and sample on both.

    Args:
        device: a GPU, or in a rehearsal the CPU.
        seconds: time for each training.
        folder: folder of the runs.
        images: images of the first training. The second goes on to twice as many.
    """
    outcomes = []
    for name, options, libraries in (("local", ["--local"], PLATFORM), ("ray", [], (*PLATFORM, "ray"))):
        missing = [library for library in libraries if importlib.util.find_spec(library) is None]
        what = f"train quickstart {' '.join(options)}".strip()
        if missing:
            outcomes.append(left_out(what, f"not installed: {', '.join(missing)}"))
            continue
        runs = []
        for total, change in ((images, []), (2 * images, ["--allow-config-change", "train.images"])):
            status = train(name, [*options, *change], total, device, seconds, folder)
            runs.append(at_most(f"{what}, exit status at {total} images", status, 0))
        outcomes += runs
        if all(run.passed for run in runs):
            model = last_weights(folder / "runs" / name)
            outcomes += [
                replace(outcome, name=f"{what}: {outcome.name}") for outcome in same_samples(model, device)
            ]
    return outcomes


def train(name: str, options: list[str], images: int, device: torch.device, seconds: float, folder: Path) -> int:
    """Train the run of a name up to `images` images, and return the exit status. 124: it took too long."""
    command = [sys.executable, "-m", "causalfusion_platform", "train", "quickstart", *options, f"name={name}"]
    settings = {
        "data.prepare": "true",
        "train.images": images,
        "train.checkpoint_every_images": IMAGES,
        "train.sample_every_images": IMAGES,
        "train.num_workers": 1,
        "train.gpus_per_worker": int(device.type == "cuda"),
        "train.precision": "bf16",
        "sampling.num_inference_steps": 10,
        "evaluation.num_samples": 20,
    }
    command += [f"{key}={value}" for key, value in settings.items()]
    print(" ".join(command), flush=True)
    environment = os.environ | {"CAUSALFUSION_HOME": str(folder)}
    with subprocess.Popen(command, env=environment) as running:
        try:
            return running.wait(seconds)
        except subprocess.TimeoutExpired:
            running.terminate()  # it stops Ray, and would leave it behind if it were killed
            return 124


def last_weights(run: Path) -> CausalFusion:
    """Return the model of a run's last checkpoint."""
    model = load_weights(sorted(run.glob("checkpoints/*/weights"))[-1])
    assert isinstance(model, CausalFusion)
    return model
