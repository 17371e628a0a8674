"""Rows that a run's probes are trained and measured on, and the checks of their shards."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from causalfusion import ModelConfig

from ...config.commands import command
from ...config.errors import UserError
from ...config.schema import Experiment
from ...data.check_validation import check_validation
from ...data.chosen_rows import choose_rows
from ...data.manifest import Manifest
from ...data.validate import CheckedShards, open_shards
from ...evaluation.probe.probe import ProbeData
from ..runs.folder import RunFolder


def open_both_parts(
    run: RunFolder, experiment: Experiment, model: ModelConfig, data: Path | None, validation: Path | None
) -> tuple[CheckedShards, CheckedShards]:
    """Open the shards of labelled training rows and of validation rows.

    Args:
        run: the run.
        experiment: that of the run.
        model: that of its weights.
        data: folder of training rows. Default: the shards that the run was trained on.
        validation: folder of validation rows. Default: the run's own.

    Raises:
        UserError: they do not fit the model or each other, lack labels, or training has seen validation rows.
    """
    own = experiment.data
    path, validation = data or own.path, validation or own.validation
    if validation is None:
        raise UserError(
            f"the run {run.name!r} names no validation images, which no training sees\n"
            f"  name their shards: {command('probe', run.root, '--validation')} FOLDER\n"
            f"  the bundled digits in two parts: {command('data', 'digits', 'shards/digits-split', '--split')}"
        )
    hashes = own.verify == "hash"
    shards = open_shards(path, hashes=hashes, max_bad_rows=own.max_bad_rows)
    manifest = shards.manifest
    _check_model(manifest, path, run, model)
    if len(manifest.class_names) < 2:
        raise UserError(
            f"the shards in {path} have no labels, which a probe is trained on\n"
            f"  name shards of images in classes: --data FOLDER --validation FOLDER"
        )
    found = check_validation(_with_data(experiment, path, validation), shards)
    if path.absolute() != own.path.absolute() and own.path.is_dir():
        pretraining = open_shards(own.path, hashes=False)
        check_validation(_with_data(experiment, own.path, validation), pretraining, classes=False)
    return shards, found


def choose_both_parts(
    shards: CheckedShards, validation: CheckedShards, *, rows: int, per_class: int | None, seed: int
) -> ProbeData:
    """Choose at most `rows` rows of each part, or `per_class` training rows of each class.

    Raises:
        UserError: a class has fewer rows, these are more than `rows`, or all of them have one class.
    """
    train = choose_rows(shards.folder, shards.usable, rows, per_class=per_class, seed=seed)
    counts = Counter(train.labels.tolist())
    names = shards.manifest.class_names
    if per_class is not None:
        few = [names[label] for label in range(len(names)) if counts[label] < per_class]
        if few:
            most = min(counts[label] for label in range(len(names)))
            raise UserError(
                f"--per-class {per_class}: class {few[0]!r} in {shards.folder} has fewer rows\n"
                f"  ask for at most {most}, or for all labels: leave --per-class out"
            )
        if len(train) > rows:
            raise UserError(
                f"--per-class {per_class} asks for {len(train):,} rows, --rows allows {rows:,}\n"
                f"  ask for fewer, or allow more: --rows {len(train)}"
            )
    if len(counts) < 2:
        raise UserError(
            f"{len(train):,} training rows of {shards.folder} have one class\n  take more rows: --rows N"
        )
    others = choose_rows(validation.folder, validation.usable, rows, seed=seed)
    return ProbeData(train, others, seed)


def _with_data(experiment: Experiment, path: Path, validation: Path) -> Experiment:
    data = experiment.data.model_copy(update={"path": path, "validation": validation})
    return experiment.model_copy(update={"data": data})


def _check_model(manifest: Manifest, path: Path, run: RunFolder, model: ModelConfig) -> None:
    expected = (model.in_channels, model.input_size, model.input_size)
    if manifest.shape != expected:
        raise UserError(
            f"the shards in {path} hold latents of shape {manifest.shape}, but the model of run {run.name!r} takes "
            f"{expected}\n  name shards of its shape: --data FOLDER --validation FOLDER"
        )
    made = run.autoencoder
    if made is not None and made != manifest.autoencoder:
        raise UserError(
            f"the latents in {path} are of the autoencoder {manifest.autoencoder}, but run "
            f"{run.name!r} was trained on those of {made}\n"
            f"  encode the images with that of the run, or name other shards: --data FOLDER --validation FOLDER"
        )
