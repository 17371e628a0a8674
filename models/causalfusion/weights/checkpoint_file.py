"""Checkpoint files of other code, read as plain tensors without running pickled code."""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

_NAMES_LISTED = 12
# Modules that hold a model and put their names into those of its tensors: torch.compile, FSDP, checkpoint_wrapper.
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_PARALLEL = "module."  # DataParallel, DistributedDataParallel and AveragedModel, around the whole model
_COUNTER = "n_averaged"  # of AveragedModel, beside the model


class CheckpointNotice(UserWarning):
    """A checkpoint was read in a way that its owner should know of."""


def read_state(path: Path, *, prefer: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """Return the tensors of a file by name: of a `.safetensors` file, or of one that `torch.save` wrote.

    A `torch.save` file may hold a state dict, or several under entries such as "ema" and "model". The first entry
    of `prefer` that exists is taken. An `argparse.Namespace` beside the tensors is allowed, because training
    scripts store their arguments in one. All other classes are refused.

    The names of wrappers, such as `module.` and `_orig_mod.`, are left out of the names, with a `CheckpointNotice`.
    Tensors are on the CPU and may be memory-mapped. Copy those that must outlive the file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file needs pickled code, is damaged, holds something else than tensors, or two tensors have
            one name without the wrappers.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such checkpoint file: {path}")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}; a dict of tensors is wanted")

    entry = next((name for name in prefer if name in content), None)
    state = content if entry is None else content[entry]
    where = str(path) if entry is None else f"entry {entry!r} of {path}"
    if not isinstance(state, Mapping):
        raise ValueError(f"{where} is a {type(state).__name__}; a dict of tensors is wanted")
    others = [name for name, value in state.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if others or not state:
        looked_for = f"; none of the entries {', '.join(prefer)} is there" if prefer and entry is None else ""
        raise ValueError(
            f"{where} is not a dict of tensors by name: {len(others)} of {len(state)} entries are something else "
            f"({_listed(others)}){looked_for}; keys of the file: {_listed(content)}"
        )
    return {name: value.detach() for name, value in _unwrapped(state, where).items()}


def numbers_in(tensor: Tensor) -> torch.dtype:
    """Return the narrowest floating-point type that holds a tensor's numbers, such as that of an earlier cast."""
    narrow = (torch.bfloat16, torch.float16)
    return next((kind for kind in narrow if torch.equal(tensor.to(kind).to(tensor.dtype), tensor)), tensor.dtype)


def rounding(kind: torch.dtype) -> float:
    """Return the largest error of a number in [−1, 1] that was cast from float32."""
    return torch.finfo(kind).eps / 4 if kind in (torch.bfloat16, torch.float16) else 0.0


def write_state(path: Path, state: Mapping[str, Tensor], *, entries: tuple[str, ...] = ()) -> None:
    """Write tensors by name: safetensors for a `.safetensors` file, else with `torch.save`.

    Args:
        path: the file. Its folder is made if needed.
        entries: names under which `torch.save` stores the whole state. Without names the file is the state.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    if path.suffix == ".safetensors":
        save_file(tensors, path, metadata={"format": "pt"})
    else:
        torch.save(dict.fromkeys(entries, tensors) if entries else tensors, path)


def report_mismatch(
    wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], source: object
) -> None:
    """Compare names and shapes of tensors.

    Args:
        wanted: shapes by name.
        found: shapes by name.
        source: origin of `found`, for the error message.

    Raises:
        ValueError: names are missing, unknown, or of the wrong shape. Up to a dozen of each kind are listed.
    """
    missing = wanted.keys() - found.keys()
    unknown = found.keys() - wanted.keys()
    reshaped = {name for name in wanted.keys() & found.keys() if tuple(wanted[name]) != tuple(found[name])}
    shapes = [f"{name} is {tuple(found[name])}, wanted {tuple(wanted[name])}" for name in reshaped]
    kinds = {"missing": missing, "unknown": unknown, "wrong shape": shapes}
    lines = [f"{kind} ({len(names)}): {_listed(names)}" for kind, names in kinds.items() if names]
    if lines:
        raise ValueError("\n  ".join([f"{source} does not hold the tensors that are wanted.", *lines]))


def _unwrapped(state: Mapping[str, Tensor], where: str) -> Mapping[str, Tensor]:
    """Return the tensors by their names in the model itself."""
    names = {name: ".".join(part for part in name.split(".") if part not in _WRAPPERS) for name in state}
    removed = [f"{part}." for part in _WRAPPERS if any(part in name.split(".") for name in state)]
    inside = {name: short for name, short in names.items() if short != _COUNTER}
    while inside and all(short.startswith(_PARALLEL) for short in inside.values()):
        names = inside = {name: short.removeprefix(_PARALLEL) for name, short in inside.items()}
        removed = [_PARALLEL, *(part for part in removed if part != _PARALLEL)]
    if not removed:
        return state
    unwrapped = {short: state[name] for name, short in names.items()}
    if len(unwrapped) < len(names):
        raise ValueError(f"{where} holds two tensors of one name, if {' and '.join(removed)} are left out")
    notice = f"{where}: names of wrappers are left out of the names of its tensors: {', '.join(removed)}"
    warnings.warn(notice, CheckpointNotice, stacklevel=3)
    return unwrapped


def _read_safetensors(path: Path) -> object:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged, or not safetensors: {error}") from error


def _read_torch(path: Path) -> object:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            # Mapping skips an optimizer's state beside the model. Only the zip format can be mapped.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        # torch's message says how to run the file's code anyway, so only the name of the code is passed on.
        code = re.search(r"GLOBAL (\S+)", str(error))
        raise ValueError(
            f"{path} is refused: it needs pickled code{f' ({code[1]})' if code else ''}, which could do anything "
            "when it is loaded. Have it saved again as plain tensors, torch.save(model.state_dict(), …), or as "
            "safetensors."
        ) from None
    except OSError:
        raise
    except Exception as error:  # A damaged file can make the unpickler raise anything.
        reason = str(error).split(". ")[0]
        raise ValueError(
            f"{path} is damaged, or torch.save did not write it: {type(error).__name__}: {reason}"
        ) from error


def _listed(names: Iterable[object]) -> str:
    in_order = sorted(map(str, names))
    more = len(in_order) - _NAMES_LISTED
    return ", ".join(in_order[:_NAMES_LISTED]) + (f" … and {more} more" if more > 0 else "")
