"""File of the tensors that the end of a run makes: the workers write it, and the driver reads it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..config.errors import UserError

_ATTEMPT = "attempt"


def write_final(path: Path, final: dict[str, Tensor], attempt: int) -> int | None:
    """Write the tensors, with the attempt that made them. The file of an earlier attempt is removed in any case.

    Returns:
        The attempt, for `read_final`. None without tensors.
    """
    path.unlink(missing_ok=True)
    if not final:
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(final, path, {_ATTEMPT: str(attempt)})
    return attempt


def read_final(path: Path, attempt: int | None) -> dict[str, Tensor]:
    """Read the tensors that an attempt has written.

    Args:
        path: the file.
        attempt: result of `write_final` in the worker.

    Raises:
        UserError: the file is missing, damaged, or of another attempt.
    """
    if attempt is None:
        return {}
    try:
        with safe_open(path, "pt") as file:
            found = (file.metadata() or {}).get(_ATTEMPT, "unknown")
        if found == str(attempt):
            return load_file(path)
        fault = f"it is of attempt {found}"
    except FileNotFoundError:
        fault = "it is missing"
    except SafetensorError as error:
        fault = f"it cannot be read: {error}"
    raise UserError(
        f"{path} is not the file that attempt {attempt} wrote at the end of training: {fault}\n"
        f"  name a folder that all nodes share: runs=FOLDER; the same command repeats the end of the run"
    )


def packed(texts: Sequence[str]) -> Tensor:
    """Return texts as bytes of JSON, which a file of tensors can hold."""
    return torch.frombuffer(bytearray(json.dumps(list(texts)).encode()), dtype=torch.uint8)


def unpacked(packed: Tensor) -> list[str]:
    """Return the texts of `packed`."""
    texts: list[str] = json.loads(packed.numpy().tobytes())
    return texts
