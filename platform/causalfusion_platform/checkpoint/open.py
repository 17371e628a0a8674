"""Open the checkpoints of a run where they are published."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from ..storage.objects import ObjectUrl, open_store
from ..storage.run_layout import CHECKPOINTS_FOLDER
from .object_storage import ObjectCheckpoints
from .storage import CheckpointStorage, FolderCheckpoints


def open_checkpoints(run_dir: Path, url: ObjectUrl | None) -> CheckpointStorage:
    """Return the checkpoints of a run.

    Args:
        run_dir: the run's folder on this machine.
        url: the run's address on object storage. None: they lie in its folder.

    Raises:
        UserError: object storage cannot be opened, as without credentials.
    """
    here = run_dir / CHECKPOINTS_FOLDER
    return FolderCheckpoints(here) if url is None else _on_objects(url, here)


@cache
def _on_objects(url: ObjectUrl, here: Path) -> ObjectCheckpoints:
    return ObjectCheckpoints(open_store(url / CHECKPOINTS_FOLDER), here)
