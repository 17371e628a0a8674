"""The device that is measured, and the versions of the libraries that drive it."""

from __future__ import annotations

import importlib
import platform
import subprocess

import torch

from .report import Value


def facts_of(device: torch.device) -> dict[str, Value]:
    """Return name, size and capability of a device, and versions. A CPU has fewer facts."""
    facts: dict[str, Value] = {
        "device": device.type,
        "name": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _triton(),
    }
    if device.type != "cuda":
        return facts
    card = torch.cuda.get_device_properties(device)
    facts.update(
        name=card.name,
        capability=f"{card.major}.{card.minor}",
        memory_gib=card.total_memory / 2**30,
        multiprocessors=card.multi_processor_count,
        cuda=torch.version.cuda,
        cudnn=str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]
        driver=_driver(),
    )
    return facts


def _triton() -> str | None:
    try:
        version: str = importlib.import_module("triton").__version__
    except ImportError:
        return None
    return version


def _driver() -> str | None:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.splitlines()[0].strip()
