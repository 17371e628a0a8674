"""Averages of the weights chosen after training: post-hoc EMA (EDM2: Karras et al. 2024, Section 3.2).

A run that keeps power-function averages stores them in each checkpoint, averages/power-0.10/model.safetensors.
An average of any other width is close to a linear combination of those.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from torch import Tensor

from causalfusion import CausalFusionConfig, load_diffusion, save_weights
from causalfusion.weights import load_class_names
from causalfusion.weights.folder import WEIGHTS_FILE, load_config, load_tokenizer

from ..config.errors import UserError
from ..data.manifest import sha256_of
from ..storage.run_layout import RunPaths
from .manifest import BadCheckpoint, CheckpointManifest, read
from .store import AVERAGES_FOLDER, WEIGHTS_FOLDER

log = logging.getLogger(__name__)

WIDEST = 12**-0.5
"""σ_rel of γ = 0, the plain mean over the run."""

_PREFIX = "power-"
_FILE = re.compile(rf"{AVERAGES_FOLDER}/{_PREFIX}(?P<sigma>[0-9.e-]+)/{re.escape(WEIGHTS_FILE)}")
_Vector = npt.NDArray[np.float64]


def exponent(sigma: float) -> float:
    """Return γ ≥ 0 for a relative width σ_rel in (0, 12^(−1/2)] (EDM2, Equation 4 and Algorithm 2).

    σ_rel = (γ + 1)^(1/2) (γ + 2)^(−1) (γ + 3)^(−1/2), hence γ³ + 7γ² + (16 − σ^(−2)) γ + 12 − σ^(−2) = 0.

    Raises:
        ValueError: the width is outside that range.
    """
    if not 0 < sigma <= WIDEST:
        raise ValueError(f"a relative width σ_rel lies in (0, {WIDEST:.4f}], got {sigma}")
    return max(0.0, float(np.roots([1, 7, 16 - sigma**-2, 12 - sigma**-2]).real.max()))


def power_name(sigma: float) -> str:
    """Return the name of the power-function average of a relative width, such as `power-0.10`."""
    digits = repr(sigma)
    return f"{_PREFIX}{digits}0" if len(digits) == len("0.1") else f"{_PREFIX}{digits}"


@dataclass(frozen=True)
class Combination:
    """Linear combination of stored averages that approximates a wanted one."""

    weights: tuple[float, ...]
    """Factor of each stored average."""
    residual: float
    """‖wanted − combined‖ / ‖wanted‖ of the weightings of τ over the run. 0 is exact."""


def combination(stored: Sequence[tuple[int, float]], wanted: tuple[int, float]) -> Combination:
    """Fit a power-function average by stored ones: least squares with factors of sum 1 (EDM2, Algorithm 3).

    The paper leaves the sum free, and with many snapshots it is close to 1. With four it is not, such as 0.96 for a
    width of 0.15 from 0.05 and 0.10. It would scale all weights of the model. In a test on a random walk the error
    was then 3 to 6 times that of factors with sum 1.

    Args:
        stored: (step, σ_rel) of each stored average.
        wanted: (step, σ_rel) of the wanted average.

    Raises:
        ValueError: nothing is stored, or a width is outside its range.
    """
    if not stored:
        raise ValueError("no stored averages to combine")
    steps = np.array([step for step, _ in stored], dtype=np.float64)
    gammas = np.array([exponent(sigma) for _, sigma in stored])
    step, gamma = np.array([float(wanted[0])]), np.array([exponent(wanted[1])])
    gram = _inner(steps[:, None], gammas[:, None], steps, gammas)
    towards = _inner(steps, gammas, step, gamma)
    norm = float(_inner(step, gamma, step, gamma)[0])
    # Unit norms: the profiles of early steps are far larger and would lose the others to rounding.
    scale = np.sqrt(np.diag(gram))
    total = np.sqrt((scale**-2).sum())  # and a unit norm for Σ factors = 1, in these units
    ones = 1 / (scale * total)
    system = np.block([[gram / np.outer(scale, scale), ones[:, None]], [ones, 0.0]])
    fitted = np.linalg.lstsq(system, np.append(towards / scale, 1 / total), rcond=1e-13)[0][:-1] / scale
    left = norm - 2 * fitted @ towards + fitted @ gram @ fitted
    return Combination(tuple(fitted.tolist()), float(np.sqrt(max(0.0, left) / norm)))


def _inner(steps_a: _Vector, gammas_a: _Vector, steps_b: _Vector, gammas_b: _Vector) -> _Vector:
    """∫ p_a p_b dτ of p(τ) = (γ + 1) τ^γ / t^(γ + 1) on [0, t] (EDM2, Algorithm 3, p_dot_p)."""
    powers = np.where(steps_a < steps_b, gammas_b, -gammas_a)
    heights: _Vector = (gammas_a + 1) * (gammas_b + 1) * (steps_a / steps_b) ** powers
    return heights / ((gammas_a + gammas_b + 1) * np.maximum(steps_a, steps_b))


@dataclass(frozen=True)
class _Stored:
    step: int
    sigma: float
    checkpoint: Path
    file: Path


def reconstruct(source: Path, sigma: float, out: Path, show: Callable[[int, int], None] = lambda *_: None) -> str:
    """Write the power-function average of width `sigma` at a run's newest step as a folder of weights.

    Args:
        source: folder of a run, or of its checkpoints.
        sigma: the wanted relative width σ_rel.
        out: folder to write, which must be new or empty.
        show: called with the number of tensors combined, and of all.

    Returns:
        A description of the written average, of the stored averages it was made from, and of the fit.

    Raises:
        UserError: `source` holds no power-function averages, `sigma` is out of range, or `out` is not empty.
    """
    if not 0 < sigma <= WIDEST:
        raise UserError(
            f"a relative width of {sigma} is not possible\n  allowed: above 0, up to {WIDEST:.4f}; try --sigma 0.10"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not empty\n  name a new folder")
    stored = _stored_averages(source)
    step, newest = stored[0].step, stored[0].checkpoint / WEIGHTS_FOLDER
    fit = combination([(average.step, average.sigma) for average in stored], (step, sigma))
    average = _combined(stored, fit.weights, show)
    config = load_config(newest)
    of_text = isinstance(config, CausalFusionConfig) and config.text is not None
    tokenizer = load_tokenizer(newest) if of_text else None
    save_weights(out, config, average, load_diffusion(newest), load_class_names(newest), tokenizer)
    steps = ", ".join(str(step) for step in sorted({average.step for average in stored}))
    names = ", ".join(sorted({power_name(average.sigma) for average in stored}))
    return (
        f"{out}: {power_name(sigma)} at step {step}, from {len(stored)} stored averages\n"
        f"  {names} at steps {steps}; the fit leaves {fit.residual:.2%} of its weighting"
    )


def _stored_averages(source: Path) -> list[_Stored]:
    """Return the power-function averages under `source`, newest first, without damaged ones."""
    checkpoints = RunPaths(source).checkpoints
    root = checkpoints if checkpoints.is_dir() else source
    found: list[_Stored] = []
    reached: float = math.inf
    for folder, manifest in _newest_first(root):
        if manifest.step >= reached:
            continue  # from before a roll-back
        for name, record in manifest.files.items():
            match = _FILE.fullmatch(name)
            if match is None:
                continue
            file = folder / name
            if not file.is_file() or sha256_of(file) != record.sha256:
                log.warning("%s is damaged; it is left out", file)
                continue
            found.append(_Stored(manifest.step, float(match["sigma"]), folder, file))
            reached = manifest.step
    if not found:
        raise UserError(
            f"no power-function averages in {source}\n"
            f"  name a run, or its folder of checkpoints, that was trained with optim.ema_power=[0.05,0.10]; "
            f"train.keep_checkpoints says how many are kept"
        )
    return found


def _newest_first(root: Path) -> list[tuple[Path, CheckpointManifest]]:
    found = []
    for folder in root.glob("images-*"):
        try:
            found.append((folder, read(folder)))
        except BadCheckpoint as bad:
            log.warning("checkpoint %s is left out: %s", folder, bad)
    return sorted(found, key=lambda item: (item[1].order, item[1].step), reverse=True)


def _combined(
    stored: Sequence[_Stored], factors: Sequence[float], show: Callable[[int, int], None]
) -> dict[str, Tensor]:
    """Return Σ factor · average in fp32, summed in float64 one parameter at a time."""
    state = {}
    with ExitStack() as opened:
        files = [opened.enter_context(safe_open(average.file, "pt")) for average in stored]
        names = list(files[0].keys())
        for name in names:
            total = torch.zeros((), dtype=torch.float64)
            for file, factor in zip(files, factors, strict=True):
                total = total + factor * file.get_tensor(name).double()
            state[name] = total.float()
            show(len(state), len(names))
    return state
