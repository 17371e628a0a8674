"""Find the classifier of a data set, or train it and keep it.

It lies beside the shards in a folder that begins with a dot, which readers of Parquet folders pass over. The folder
is named by the digest of data, recipe and code. `classifier.json` is written last.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ...config.errors import UserError
from ...data.manifest import Manifest, sha256_of
from ...data.shards import classifier_folder
from ...storage.atomic import write_atomically
from ...storage.json_file import read_model
from ..extractors.classifier_extractor import ClassifierExtractor, space_of
from ..metrics.statistics import Statistics
from .recipe import RECIPE, ClassifierRecipe
from .train import Alive, DataClassifier, new_network, train_classifier

logger = logging.getLogger(__name__)

RECORD_FILE, TENSORS_FILE, LOCK_FILE = "classifier.json", "classifier.safetensors", ".lock"
_NETWORK = "network."
_MEAN, _COVARIANCE, _HELD_OUT = "reference.mean", "reference.covariance", "held_out"
_WAIT_SECONDS = 1.0


class ClassifierRecord(BaseModel):
    """Content of `classifier.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    version: Literal[1] = 1
    identity: str
    """SHA-256 over data, recipe and version of the code."""
    data_digest: str
    """Digest of the shards' manifest."""
    recipe: dict[str, Any]
    """Settings of the training."""
    weights_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 over the weights, which names the classifier in records."""
    file_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of `classifier.safetensors`, which also holds the statistics of the real images."""
    train_rows: int
    held_out_accuracy: float | None


class _Damaged(Exception):
    """A kept classifier cannot be used."""


def open_classifier(
    folder: Path, manifest: Manifest, *, recipe: ClassifierRecipe = RECIPE, alive: Alive = lambda: None
) -> DataClassifier:
    """Return the classifier of a data set. It is trained if it was not trained before, by one process alone.

    Args:
        folder: the shards, whose latents are pixels.
        manifest: the rows to use.
        recipe: settings of the training.
        alive: called from time to time during training, and while another process trains.

    Raises:
        UserError: latents are not pixels, a shard is damaged, or there are too few rows.
    """
    if manifest.autoencoder.name != "identity":
        raise UserError(
            f"latents in {folder} are of {manifest.autoencoder.name}: no classifier can see them as images\n"
            f"  measure samples with --extractor inception:PATH --reference FILE"
        )
    places = _places(folder, recipe.identity(manifest))
    for place in places:
        if (found := _kept(place, manifest, recipe, say=True)) is not None:
            return found
    with ExitStack() as stack:
        kept_in = _lock(places, stack, folder, alive)
        # Another process may have trained it before the lock was free.
        if kept_in is not None and (found := _kept(kept_in, manifest, recipe, say=False)) is not None:
            return found
        trained = train_classifier(folder, manifest, recipe, alive)
        if kept_in is not None:
            try:
                _write(kept_in, trained, manifest, recipe)
            except OSError as error:
                logger.warning(f"the classifier of {folder} is not kept in {kept_in}: {error.strerror or error}")
    return trained


def _places(folder: Path, identity: str) -> list[Path]:
    """Return the folders that may hold a classifier: beside the shards, then in the user's cache."""
    beside = classifier_folder(folder, identity)
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a user without a home
        return [beside]
    return [beside, cache / "causalfusion" / "classifiers" / beside.name.removeprefix(".")]


def _lock(places: Sequence[Path], stack: ExitStack, folder: Path, alive: Alive) -> Path | None:
    """Make and lock the first of some folders that can be written. None: none of them can."""
    for number, place in enumerate(places):
        try:
            place.mkdir(parents=True, exist_ok=True)
            _wait_for(FileLock(place / LOCK_FILE, fallback_to_soft=False), stack, folder, alive)
        except OSError as error:
            logger.info(f"{place} cannot be written ({error.strerror or error})")
            continue
        if number:
            logger.info(f"the classifier of {folder} is kept in {place}")
        return place
    logger.warning(f"the classifier of {folder} is not kept: the next command trains it again")
    return None


def _wait_for(lock: FileLock, stack: ExitStack, folder: Path, alive: Alive) -> None:
    said = False
    while True:
        try:
            stack.enter_context(lock.acquire(timeout=_WAIT_SECONDS))
            return
        except Timeout:
            if not said:
                logger.info(f"waiting for the classifier of {folder}, which another process trains")
            said = True
            alive()


def _kept(place: Path, manifest: Manifest, recipe: ClassifierRecipe, *, say: bool) -> DataClassifier | None:
    """Return the classifier in a folder. None: it is not there, or damaged, which is said if asked for."""
    try:
        return _read(place, manifest, recipe)
    except FileNotFoundError:
        return None
    except _Damaged as error:
        if say:
            logger.warning(f"{place} is damaged ({error}): the classifier is trained again")
        return None


def _read(place: Path, manifest: Manifest, recipe: ClassifierRecipe) -> DataClassifier:
    try:
        record = read_model(place / RECORD_FILE, ClassifierRecord)
        if record.identity != recipe.identity(manifest):
            raise _Damaged(f"{RECORD_FILE} is of another classifier")
        if sha256_of(place / TENSORS_FILE) != record.file_sha256:
            raise _Damaged(f"the SHA-256 of {TENSORS_FILE} is not that in {RECORD_FILE}")
        tensors = load_file(place / TENSORS_FILE)
        network = new_network(manifest, recipe)
        network.load_state_dict(_below(_NETWORK, tensors))
        extractor = ClassifierExtractor(network, space_of(manifest))
        if extractor.digest != record.weights_sha256:
            raise _Damaged(f"its weights are not those that {RECORD_FILE} names")
        reference = Statistics(tensors[_MEAN], tensors[_COVARIANCE])
        return DataClassifier(extractor, reference, record.train_rows, tensors[_HELD_OUT], record.held_out_accuracy)
    except FileNotFoundError:
        raise
    except (OSError, SafetensorError, RuntimeError, KeyError, ValueError) as error:
        raise _Damaged(" ".join(str(error).split())[:200]) from error


def _write(place: Path, trained: DataClassifier, manifest: Manifest, recipe: ClassifierRecipe) -> None:
    tensors = {f"{_NETWORK}{name}": value for name, value in trained.extractor.network.state_dict().items()}
    tensors |= {
        _MEAN: trained.reference.mean,
        _COVARIANCE: trained.reference.covariance,
        _HELD_OUT: trained.held_out,
    }
    (place / RECORD_FILE).unlink(missing_ok=True)
    write_atomically(place / TENSORS_FILE, save({name: value.contiguous() for name, value in tensors.items()}))
    record = ClassifierRecord(
        identity=recipe.identity(manifest),
        data_digest=manifest.digest,
        recipe=vars(recipe),
        weights_sha256=trained.extractor.digest,
        file_sha256=sha256_of(place / TENSORS_FILE),
        train_rows=trained.train_rows,
        held_out_accuracy=trained.held_out_accuracy,
    )
    write_atomically(place / RECORD_FILE, (record.model_dump_json(indent=2) + "\n").encode())


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
