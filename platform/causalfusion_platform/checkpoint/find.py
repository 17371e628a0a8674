"""Search for the weights of a run, a checkpoint or a folder."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from causalfusion.weights.folder import CONFIG_FILE, WEIGHTS_FILE

from ..config.commands import command
from ..config.errors import UserError
from ..config.schema import local_copy
from ..storage.objects import NotThere, ObjectUrl, is_object_url, open_store
from ..storage.run_layout import CHECKPOINTS_FOLDER, STATE_FILE, RunPaths
from .object_storage import ObjectCheckpoints
from .open import open_checkpoints
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


def find_weights(path: Path, *, download: bool = False) -> Weights:
    """Find weights in a folder of weights, of a checkpoint (…/images-000000051200), or of a run (its newest).

    Args:
        path: the folder, or the address of a run on object storage.
        download: bring the weights of a run on object storage here. False: such a run is refused.

    Raises:
        UserError: no weights were found.
    """
    if is_object_url(path):
        return _of_objects(ObjectUrl.parse(path), download)
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


def _of_objects(url: ObjectUrl, download: bool) -> Weights:
    run_dir = local_copy(url.parent) / url.name
    storage = open_checkpoints(run_dir, url)
    assert isinstance(storage, ObjectCheckpoints)
    if not download:
        raise UserError(
            f"{url} is on object storage, and this command works with a folder\n"
            f"  download its weights: aws s3 cp --recursive {storage.newest_weights()} FOLDER; then name FOLDER\n"
            f"  samples need no folder: {command('sample', url)}"
        )
    weights = storage.weights_here()
    if weights is None:
        raise UserError(
            f"no weights in {url}\n  list the runs there: {command('runs', 'list', '--runs', url.parent)}"
        )
    if not (run_dir / STATE_FILE).is_file():  # the settings of sampling
        with suppress(NotThere):
            open_store(url).download(STATE_FILE, run_dir / STATE_FILE)
    return Weights(weights, run_dir)


def _holds_weights(folder: Path) -> bool:
    return (folder / WEIGHTS_FILE).is_file() and (folder / CONFIG_FILE).is_file()


def _run_of(checkpoint: Path) -> Path | None:
    root = checkpoint.parent
    return root.parent if root.name == CHECKPOINTS_FOLDER else None
