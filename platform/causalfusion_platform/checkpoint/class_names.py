"""Names of the classes that a model was trained on."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from causalfusion.weights import load_class_names
from causalfusion.weights.folder import CLASSES_FILE

from ..config.errors import UserError
from ..data.manifest import Manifest
from .manifest import BadCheckpoint, read


def class_names(weights: Path, num_classes: int, data: Path | None) -> list[str] | None:
    """Return the name of each class of a model, or None if they are not known.

    The names lie beside the weights. Checkpoints of earlier versions lack them. Then they are those of the shards,
    unless other shards have taken their place.

    Args:
        weights: folder of weights.
        num_classes: classes of the model.
        data: folder of the shards that the run read. None: not known.

    Raises:
        UserError: the file beside the weights is damaged.
    """
    try:
        names = load_class_names(weights)
        if names is not None and len(names) != num_classes:
            raise ValueError(f"{weights / CLASSES_FILE} has {len(names)} names for {num_classes} classes")
    except ValueError as error:
        raise UserError(f"{error}\n  restore the file, or remove it: classes are then given by number") from error
    if names is None and data is not None:
        with suppress(UserError, BadCheckpoint, OSError):
            manifest = Manifest.read(data)
            if read(weights.parent).data_digest == manifest.digest:
                return manifest.class_names
    return names
