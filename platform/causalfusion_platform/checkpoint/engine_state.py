"""Saving and loading of DeepSpeed's state, the only format with pickle, used for resuming only."""

from __future__ import annotations

import glob
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

TAG = "state"
"""Folder of DeepSpeed's files inside the engine's folder."""


def save_engine(engine: Any, folder: Path) -> None:
    """Write this rank's part of the engine's state into `folder`. All ranks call it together.

    Each rank may use its own folder. `load_engine` reads the union of their files.

    Raises:
        OSError: this rank could not write. It is raised after all ranks have finished, so that none waits.
    """
    inner = engine.checkpoint_engine
    writer = _Writer(inner)
    engine.checkpoint_engine = writer
    # DeepSpeed adds recovery scripts, but a checkpoint holds data only.
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
    """Restore an engine of the same world size and ZeRO stage, or of any world size at stage 0.

    All ranks call it together. Each needs the files of all ranks.

    Raises:
        pickle.UnpicklingError: a file holds code, which was not run.
    """
    with weights_only(), plain_path(folder) as plain:
        path, _ = engine.load_checkpoint(str(plain), tag=TAG)
    if path is None:  # DeepSpeed only logs it
        raise FileNotFoundError(f"{folder} holds no state of an engine")


@contextmanager
def plain_path(folder: Path) -> Iterator[Path]:
    """Yield a path of the folder without `[`, `*` and `?`, which DeepSpeed would take for a pattern of names."""
    if glob.escape(str(folder)) == str(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="cf-plain-") as links:
        link = Path(links) / "folder"
        link.symlink_to(folder.absolute(), target_is_directory=True)
        yield link


@contextmanager
def weights_only() -> Iterator[None]:
    """Restrict every torch.load to tensors, plain data, and the types in DeepSpeed's states.

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
    """DeepSpeed's file writer, which keeps its first fault. A rank that left early would hang the others."""

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
