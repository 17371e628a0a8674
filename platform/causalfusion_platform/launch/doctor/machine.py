"""Checks of this machine: Python, packages, compiler, GPU, memory."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path

import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from ...config.schema import Experiment
from ...report.numbers import size
from ...storage.held import held_folder
from ...tasks import open_task
from ...train.memory import Memory, estimate
from ..training.dry_run import planned_precision
from .check import Check, Verdict

PACKAGE = "causalfusion-platform"
_LIBRARIES = 2**30  # bytes that torch, Ray and DeepSpeed themselves take in a process


def check_python(package: str = PACKAGE) -> Check:
    """Compare this Python with what the package asks for."""
    wanted = metadata(package)["Requires-Python"] or ""
    found = ".".join(map(str, sys.version_info[:3]))
    if SpecifierSet(wanted).contains(found):
        return Check("python", "ok", f"{found}, {sys.executable}")
    return Check("python", "FAIL", f"{found}, wanted is {wanted}", "make an environment with Python 3.11 or 3.12")


def check_versions(package: str = PACKAGE) -> Check:
    """Compare the installed packages with the ranges that the package asks for."""
    wrong: list[str] = []
    wanted: list[str] = []
    right = 0
    for text in requires(package) or []:
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            found = "none"
        if found == "none" or not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name} {found}, wanted {requirement.specifier}")
            extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
            wanted.append(f"'{requirement.name}{extras}{requirement.specifier}'")
        else:
            right += 1
    if wrong:
        return Check("packages", "FAIL", "; ".join(wrong), f"pip install {' '.join(wanted)}")
    main = ", ".join(f"{name} {version(name)}" for name in ("torch", "ray", "deepspeed", "mlflow"))
    return Check("packages", "ok", f"{right} in their ranges: {main}")


def check_compiler(experiment: Experiment, names: tuple[str, ...] = ("c++", "g++", "clang++")) -> Check:
    """Compile and run a program: torch.compile and DeepSpeed's own operators need a compiler."""
    needed = experiment.train.compile
    verdict: Verdict = "FAIL" if needed else "warn"
    why = "train.compile needs one" if needed else "only train.compile and DeepSpeed's own operators need one"
    found = next((path for path in map(shutil.which, names) if path), None)
    if found is None:
        return Check("compiler", verdict, f"no {', '.join(names)}; {why}", "apt-get install g++ ninja-build")
    with held_folder() as folder:
        source, program = folder / "a.cpp", folder / "a.out"
        source.write_text(
            "#include <vector>\nint main() { return std::vector<int>(3, 14)[2]; }\n", encoding="utf-8"
        )
        done = subprocess.run(
            [found, source, "-o", program], capture_output=True, encoding="utf-8", errors="replace", timeout=120
        )
        if done.returncode or subprocess.run([program], timeout=60).returncode != 14:
            fault = (done.stderr.strip().splitlines() or ["its program gives a wrong answer"])[0]
            return Check("compiler", verdict, f"{found} does not work: {fault}; {why}", "apt-get install g++")
    ninja = "ninja" if shutil.which("ninja") else "no ninja (DeepSpeed's own operators need it)"
    return Check("compiler", "ok", f"{found}, {ninja}")


def check_gpu(experiment: Experiment, *, elsewhere: bool) -> Check:
    """Multiply on a GPU.

    Args:
        experiment: says if GPUs are wanted.
        elsewhere: the workers run on a cluster, not here.
    """
    wanted = experiment.train.gpus_per_worker
    if not torch.cuda.is_available():
        if not wanted:
            return Check("GPU", "ok", "none here, and none wanted (train.gpus_per_worker=0)")
        verdict: Verdict = "warn" if elsewhere else "FAIL"
        line = f"none here, but train.gpus_per_worker={wanted:g}"
        return Check("GPU", verdict, line, "train.gpus_per_worker=0, or run on a machine with GPUs")
    one = torch.ones(256, 256, device="cuda")
    right = float((one @ one).sum()) == 256**3
    free, total = torch.cuda.mem_get_info()
    line = f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}, {size(free)} of {size(total)} free"
    if not right:
        return Check("GPU", "FAIL", f"{line}; it multiplies wrongly", "nvidia-smi -q, and look for errors")
    if not wanted:
        return Check("GPU", "warn", f"{line}; the experiment uses none", "train.gpus_per_worker=1")
    return Check("GPU", "ok", line)


def check_memory(experiment: Experiment, *, elsewhere: bool, available: float | None = None) -> Check:
    """Compare the estimate for each ZeRO stage with the free memory.

    Args:
        experiment: model, batch, workers.
        elsewhere: the workers run on a cluster, whose memory is not known here.
        available: bytes for all workers of this machine, or of one GPU. None: what is free now.
    """
    train, task, precision = experiment.train, open_task(experiment), planned_precision(experiment)
    gpu = train.gpus_per_worker > 0
    if available is None and not elsewhere and (not gpu or torch.cuda.is_available()):
        available = float(torch.cuda.mem_get_info()[0]) if gpu else available_memory()
    workers = train.num_workers

    def need(stage: int) -> float:
        memory: Memory = estimate(task, workers=workers, zero_stage=stage, precision=precision)
        return memory.total if gpu else workers * (memory.total + memory.host_total + _LIBRARIES)

    stages = [stage for stage in (0, 1, 2, 3) if stage or precision not in ("bf16_weights", "fp16")]
    listed = ", ".join(f"ZeRO {stage} {size(need(stage))}" for stage in stages)
    what = "" if task.activation_bytes(1, precision) is not None else "without activations, "
    what += "a GPU" if gpu else f"{workers} worker{'s' if workers > 1 else ''}"
    if available is None:
        return Check("memory", "ok", f"estimated for {what}: {listed}")
    line = f"estimated for {what}: {listed}; free: {size(available)}"
    if need(train.stage) <= available:
        return Check("memory", "ok", line)
    fit = next((stage for stage in stages if need(stage) <= available), None)
    less = f"train.micro_batch_size={max(train.rows_at_once // 2, 1)}, or train.activation_checkpointing=true"
    return Check("memory", "FAIL", line, f"train.zero_stage={fit}" if fit else less)


def available_memory() -> float:
    """Return the bytes that processes may still take: the free memory, within the limit of this container."""
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    free = next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    group = Path("/sys/fs/cgroup")
    try:
        limit = float((group / "memory.max").read_text(encoding="utf-8"))
        return min(free, limit - float((group / "memory.current").read_text(encoding="utf-8")))
    except (OSError, ValueError):  # no limit, or another kind of control group
        return free
