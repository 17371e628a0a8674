"""Denoising loss of trained rows on images that no training sees, with the same draws for all of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from causalfusion import Model, load_weights
from causalfusion.factorization.steps import equal_step_sizes
from causalfusion.weights.folder import WEIGHTS_FILE

from ...checkpoint.find import find_weights
from ...config.errors import UserError
from ...config.paper_table import Column
from ...config.schema import Experiment
from ...data.check_validation import check_held_out
from ...data.manifest import sha256_of
from ...data.prepare import is_written_later
from ...data.read import read_all
from ...data.split_digits import validation_folder
from ...data.validate import CheckedShards, open_shards
from ...storage.atomic import write_atomically
from ...storage.json_file import read_object
from ...storage.run_layout import EVALUATION_FOLDER
from ..evaluating.figure_four import LOSS_ROWS, losses_by_step
from ..runs.folder import RunFolder
from .rows import Reproduction

LOSS = "denoising_loss"
DRAWS, OTHER_DRAWS = 1_000_000, 1_000_001
"""Seeds of the draws, beyond those of trainings. The other one is for the noise of the measure."""


@dataclass(frozen=True)
class HeldOut:
    """Images that no training sees, and how many draws of order, time and noise each has."""

    folder: Path
    checked: CheckedShards
    draws: int

    @property
    def origin(self) -> str:
        """Images and draws that the numbers are of, for the report."""
        rows = min(self.checked.usable.rows, LOSS_ROWS)
        return (
            f"mean squared error of {rows} held-out images of data {self.checked.usable.digest[:12]}, {self.draws} "
            f"draws of each, the same for all rows and seeds"
        )

    def losses(
        self, run: RunFolder, experiment: Experiment, num_ar_steps: int, *, seed: int = DRAWS
    ) -> list[float]:
        """Return the mean squared error of each AR step of a finished run's average: (S,).

        It is measured once, and kept in the run's folder.
        """
        weights = find_weights(run.root).folder
        facts = {
            "weights": sha256_of(weights / WEIGHTS_FILE),
            "data": self.checked.usable.digest,
            "draws": self.draws,
            "seed": seed,
            "num_ar_steps": num_ar_steps,
        }
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
        path = run.root / EVALUATION_FOLDER / f"{LOSS}-s{num_ar_steps}-{digest}.json"
        known = _read(path, facts)
        if known is not None:
            return known
        model = load_weights(weights, device="cuda" if torch.cuda.is_available() else "cpu")
        found = self._measure(model, experiment, num_ar_steps, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (json.dumps({**facts, "losses": found}, indent=2) + "\n").encode())
        return found

    def _measure(self, model: Model, experiment: Experiment, num_ar_steps: int, seed: int) -> list[float]:
        rows = read_all(self.folder, self.checked.usable, at_most=LOSS_ROWS)
        return losses_by_step(model, rows, experiment.diffusion, [num_ar_steps], seed, self.draws)[num_ar_steps]


class HeldOutSets:
    """Held-out images of the rows of a table. Rows of the same data share them, and they are checked once."""

    def __init__(self, reproduction: Reproduction) -> None:
        self._draws, self._checked = reproduction.plan.validation_draws, reproduction.job.checked
        self._opened: dict[tuple[Path, Path | None], HeldOut] = {}

    def of(self, experiment: Experiment) -> HeldOut:
        """Open the held-out images of a row: see `open_held_out`."""
        data = experiment.data
        folders = data.path, data.validation
        if folders not in self._opened:
            self._opened[folders] = open_held_out(experiment, self._draws, self._checked.get(data.path))
        return self._opened[folders]


def open_held_out(experiment: Experiment, draws: int, checked: CheckedShards | None = None) -> HeldOut:
    """Open the held-out images of a row.

    Args:
        experiment: of the row.
        draws: of each image.
        checked: an earlier check of the row's training shards.

    Raises:
        UserError: the row names none, or they do not fit its training data, or training has seen them.
    """
    folder = named_held_out(experiment)
    shards = open_shards(experiment.data.path, known=checked)
    return HeldOut(folder, check_held_out(experiment, shards, folder, "data.validation"), draws)


def named_held_out(experiment: Experiment) -> Path:
    """Return the folder of the held-out images of a row, which may still have to be written.

    Raises:
        UserError: the row names none, or one that the data of training will not be written with.
    """
    data = experiment.data
    if data.validation is None:
        raise UserError(
            "the table measures the denoising loss on images that no training sees, but data.validation is null\n"
            "  name their shards, with those of training: data.path=FOLDER data.validation=FOLDER"
        )
    beside = validation_folder(data.path)
    if is_written_later(data) and data.validation != beside:
        raise UserError(
            f"data.prepare={data.prepare} writes the images that no training sees to {beside}, but data.validation "
            f"is {data.validation}\n  name both: data.path={data.path} data.validation={beside}"
        )
    return data.validation


def loss_at(losses: Iterable[float], column: Column, num_tokens: int) -> float:
    """Return the loss that a column asks for: of one AR step, or of all tokens alike.

    Args:
        losses: of each of S AR steps of (almost) equal size, as `equal_step_sizes` cuts them.
        column: names the step, or none.
        num_tokens: L.
    """
    steps = list(losses)
    if column.ar_step is not None:
        return steps[column.ar_step - 1]
    sizes = equal_step_sizes(num_tokens, len(steps))
    return sum(loss * size for loss, size in zip(steps, sizes, strict=True)) / num_tokens


def _read(path: Path, facts: dict[str, object]) -> list[float] | None:
    try:
        record = read_object(path)
        losses = [float(loss) for loss in record.pop("losses")]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return losses if record == facts and len(losses) == facts["num_ar_steps"] else None
