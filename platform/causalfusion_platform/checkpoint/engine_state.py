"""Save and load DeepSpeed's state: the one format with pickle in it, used for resuming only."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

TAG = "state"
"""Folder inside the engine's folder that DeepSpeed's files lie in."""


def save_engine(engine: Any, folder: Path) -> None:
    """Write this rank's part of the engine's state into `folder`. All ranks call it together.

    The folders of the ranks may be different ones: put together they are what `load_engine` reads.

    Raises:
        OSError: this rank could not write. The other ranks are not kept waiting: it is raised when all are through.
    """
    inner = engine.checkpoint_engine
    writer = _Writer(inner)
    engine.checkpoint_engine = writer
    # Recovery scripts: a checkpoint holds data only.
    engine._copy_recovery_script = lambda _: None
    try:
        writer.makedirs(str(folder))
        engine.save_checkpoint(str(folder), tag=TAG, save_latest=False)
    finally:
        engine.checkpoint_engine = inner
        del engine._copy_recovery_script
    if writer.fault is not None:
        raise OSError(f"{folder} cannot be written: {writer.fault}") from writer.fault


def load_engine(engine: Any, folder: Path) -> None:
    """Restore an engine of the same world size and ZeRO stage; of any world size at stage 0.

    All ranks call it together; each needs all ranks' files.

    Raises:
        pickle.UnpicklingError: a file holds code. It has not run.
    """
    with weights_only():
        path, _ = engine.load_checkpoint(str(folder), tag=TAG)
    if path is None:  # DeepSpeed only logs it
        raise FileNotFoundError(f"{folder} holds no state of an engine")


@contextmanager
def weights_only() -> Iterator[None]:
    """Make every torch.load refuse what is not a tensor, plain data, or a type that DeepSpeed's states hold.

    DeepSpeed asks for weights_only=False, which would run code hidden in a malicious file.
    """
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


class _Writer:
    """DeepSpeed's writer of files, which keeps its first fault: a rank that left early would hang the others."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.fault: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def save(self, state_dict: Any, path: str) -> None:
        if self.fault is None:
            self._try(self._inner.save, state_dict, path)

    def makedirs(self, path: str, exist_ok: bool = True) -> None:
        if self.fault is None:
            self._try(self._inner.makedirs, path, exist_ok=exist_ok)

    def _try(self, write: Any, *args: Any, **kwargs: Any) -> None:
        try:
            write(*args, **kwargs)
        except Exception as fault:  # on a full disk torch raises RuntimeError
            self.fault = fault
