"""Search for the weights of a run, a checkpoint or a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from causalfusion.weights.folder import CONFIG_FILE, WEIGHTS_FILE

from ..config.errors import UserError
from ..storage.run_layout import CHECKPOINTS_FOLDER, RunPaths
from .store import WEIGHTS_FOLDER, latest


@dataclass(frozen=True)
class Weights:
    """Folder of weights, and the run that they come from."""

    folder: Path
    run: Path | None
    """Folder of the run, or None for weights outside a run."""

    @property
    def images(self) -> int:
        """Images that the weights had seen, by the name of their checkpoint, or 0 for others."""
        _, _, number = self.folder.absolute().parent.name.partition("images-")
        return int(number) if number.isdecimal() else 0


def find_weights(path: Path) -> Weights:
    """Find weights in a folder of weights, of a checkpoint (…/images-000000051200), or of a run (its newest).

    Raises:
        UserError: no weights were found.
    """
    if _holds_weights(path):
        checkpoint = path.absolute().parent
        return Weights(path, _run_of(checkpoint) if path.absolute().name == WEIGHTS_FOLDER else None)
    if _holds_weights(path / WEIGHTS_FOLDER):
        return Weights(path / WEIGHTS_FOLDER, _run_of(path.absolute()))
    checkpoints = RunPaths(path).checkpoints
    if checkpoints.is_dir() and (newest := latest(checkpoints)):
        return Weights(newest[0] / WEIGHTS_FOLDER, path)
    raise UserError(
        f"no weights in {path}\n"
        f"  name a run (runs/quickstart), one of its checkpoints, or a folder with {WEIGHTS_FILE}, {CONFIG_FILE}\n"
        f"  a checkpoint file of other code: causalfusion weights import FILE FOLDER"
    )


def _holds_weights(folder: Path) -> bool:
    return (folder / WEIGHTS_FILE).is_file() and (folder / CONFIG_FILE).is_file()


def _run_of(checkpoint: Path) -> Path | None:
    root = checkpoint.parent
    return root.parent if root.name == CHECKPOINTS_FOLDER else None
