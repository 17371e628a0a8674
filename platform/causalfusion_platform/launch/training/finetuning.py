"""Fine-tunes by the command: the experiment of a recipe and a trained model, and the run that the model is of."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Sequence
from pathlib import Path

from causalfusion.weights.folder import load_config

from ...checkpoint.find import find_weights
from ...config.commands import command
from ...config.compose import Composed, compose_experiment, validate
from ...config.errors import UserError
from ...config.schema import Experiment
from ...data.autoencoder.open import open_autoencoder
from ...data.manifest import Manifest
from ...data.overlap import ShardsOf, shared_latents
from ..runs.folder import RunFolder

logger = logging.getLogger(__name__)

_TASKS = {"classify": "classification", "caption": "captioning"}
"""Kind of a fine-tune → its task. A recipe may have a task of your own."""


def compose_finetune(recipe: str, kind: str, weights: Path, overrides: Sequence[str]) -> Composed:
    """Return the experiment of a recipe that starts from a trained model.

    Args:
        recipe: an experiment of task=classification or task=captioning. Its model is replaced.
        kind: `classify` or `caption`. It ends the default name of the run.
        weights: a run, one of its checkpoints, or a folder of weights.
        overrides: `key=value`, which go before the recipe.

    Raises:
        UserError: weights are missing or cannot be fine-tuned, an override is wrong, or the recipe is of the
            other kind.
    """
    if given := next((text for text in overrides if text.lstrip("+").startswith("model")), None):
        raise UserError(f"{given} cannot be given: the model is that of {weights}\n  leave it out")
    found = find_weights(weights)
    try:
        config = load_config(found.folder)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{weights} cannot be fine-tuned: {error}\n  name a run of task=class_to_image or task=text_image"
        ) from error
    name = f"name={_name_of(found.run or found.folder)}-{kind}"
    start = f"finetune.weights={weights.absolute()}"
    composed = compose_experiment(recipe, [name, start, *overrides])
    task = composed.experiment.task
    other = next((name for name in _TASKS if _TASKS[name] == task), kind)
    if kind in _TASKS and other != kind:
        raise UserError(
            f"the recipe {recipe} has task={task}, which is not that of {kind}\n"
            f"  {command('finetune', other, weights, '--recipe', recipe)}; or name a recipe of task={_TASKS[kind]}"
        )
    model = dataclasses.asdict(config)
    experiment = validate({**composed.experiment.model_dump(mode="json"), "model": model}, recipe)
    return Composed(experiment, {**composed.unresolved, "model": model})


def _name_of(folder: Path) -> str:
    """Return the name of a folder, with hyphens for characters that a run's name cannot have."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", folder.absolute().name).strip("._-") or "weights"


def check_start(experiment: Experiment, manifest: Manifest) -> None:
    """Check that shards are of the autoencoder that the model of a fine-tune was trained with, if it is known.

    Rows of validation that the model was trained on are logged.

    Raises:
        UserError: they are of another one.
    """
    finetune = experiment.finetune
    if finetune is None or finetune.weights is None:
        return
    found = find_weights(finetune.weights).run
    if found is None:
        return
    run = RunFolder(found)
    if finetune.augment.mode == "pixels":
        open_autoencoder(finetune.vae, experiment.model.in_channels, made=run.autoencoder)
        return
    if run.autoencoder is not None and run.autoencoder != manifest.autoencoder:
        raise UserError(
            f"the shards in {experiment.data.path} are of the autoencoder {manifest.autoencoder}, but the model in "
            f"{finetune.weights} was trained with {run.autoencoder}\n"
            f"  set data.path to shards of that autoencoder: causalfusion data encode --help"
        )
    if run.experiment is not None and experiment.data.validation is not None:
        _warn_of_seen(run.experiment.data.path, experiment.data.validation, finetune.weights)


def _warn_of_seen(trained: Path, validation: Path, weights: Path) -> None:
    """Log how many rows of validation the model has seen when it was trained, if any."""
    try:
        seen, held_out = (ShardsOf(folder, Manifest.read(folder)) for folder in (trained, validation))
        overlap = shared_latents(seen, held_out)
    except UserError:  # the shards of its training are gone
        return
    if overlap.keys:
        logger.warning(
            f"the model in {weights} was trained on {len(overlap.keys):,} of {overlap.compared:,} rows of "
            f"{validation}: scores may be too high. Train one on data.prepare=split to avoid it"
        )
