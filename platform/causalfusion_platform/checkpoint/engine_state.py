"""Save and load DeepSpeed's state: the one format with pickle in it, used for resuming only."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

_TAG = "state"


def save_engine(engine: Any, folder: Path) -> None:
    """Write every rank's part of the engine's state into `folder`. All ranks call it together."""
    engine.save_checkpoint(str(folder), tag=_TAG, save_latest=True)


def load_engine(engine: Any, folder: Path) -> None:
    """Restore an engine of the same world size and ZeRO stage. All ranks call it together."""
    with _weights_only():
        engine.load_checkpoint(str(folder), tag=_TAG)


@contextmanager
def _weights_only() -> Iterator[None]:
    # DeepSpeed calls torch.load(weights_only=False), which would run code hidden in a malicious file. This makes
    # torch refuse anything but tensors, plain data and the four types that DeepSpeed's own states hold.
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        with torch.serialization.safe_globals([ZeroStageEnum, LossScaler, DynamicLossScaler, fragment_address]):
            yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
