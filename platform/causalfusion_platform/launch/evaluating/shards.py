"""Shards that a trained model is compared with."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

from ...checkpoint.find import Weights
from ...checkpoint.manifest import BadCheckpoint, read
from ...config.errors import UserError
from ...data.manifest import Manifest
from ...data.validate import check_model_fits
from ..runs.folder import RunFolder

logger = logging.getLogger(__name__)


def shards_of(weights: Weights) -> Path | None:
    """Return the folder of the shards that a run was trained on. None: without a run, or if they are gone.

    If the folder holds other data by now, a warning says so.

    Raises:
        UserError: its latents or classes do not fit the model, or it holds no shards.
    """
    run = RunFolder(weights.run) if weights.run else None
    experiment = run.experiment if run else None
    if run is None or experiment is None or not experiment.data.path.is_dir():
        return None
    path = experiment.data.path
    manifest = Manifest.read(path)
    check_model_fits(manifest, experiment.model, path)
    with suppress(BadCheckpoint, UserError):  # reading the weights reports a damaged checkpoint
        trained_on = read(weights.folder.parent).data_digest
        if trained_on != manifest.digest:
            logger.warning(
                f"{path} holds other data than those that run {run.name!r} was trained on: digest "
                f"{manifest.digest[:12]}…, was {trained_on[:12]}…\n  its samples are compared with the present data"
            )
    return path
