"""Checks, before a table is trained, that its rows can be measured. Weeks of GPU time come between."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from ...config.commands import command
from ...config.errors import UserError
from ...config.paper_figure import TextImageFigure
from ...config.paper_table import Row
from ...config.schema import Experiment
from ...data.autoencoder.open import open_autoencoder
from ...data.manifest import AutoencoderId, Manifest
from ...data.prepare import is_written_later
from ...evaluation.extractors.classifier_extractor import DATA_SPACE, DIGITS_SPACE, space_of
from ...evaluation.open import open_extractor
from ...evaluation.reference import check_size, size_in
from ...sampling.prompts_file import read_captions
from ..evaluating.measuring import is_classifier
from .held_out import LOSS, HeldOutSets, named_held_out
from .rows import Reproduction, trial_name


def check_measurable(reproduction: Reproduction) -> None:
    """Open the autoencoders, extractor and references that measure the rows asked for.

    Raises:
        UserError: one of them is missing, does not fit, or rows of two image sizes would share a reference.
    """
    sizes: dict[str | None, dict[int, Row]] = {}
    own_classifier = is_classifier(reproduction.extractor)
    _check_any_text(reproduction)
    for row in reproduction.rows:
        experiment = reproduction.experiments[trial_name(row, reproduction.plan.seeds[0])]
        text = experiment.objective.text is not None
        if text:
            _check_prompts(reproduction, row)
        by_its_run = text and reproduction.prompts is None
        if by_its_run and not isinstance(reproduction.plan.figure, TextImageFigure):
            continue
        model = experiment.model
        path = reproduction.vaes.of(row)
        try:
            coder = open_autoencoder(path, model.in_channels, made=_made(experiment))
        except UserError as error:
            raise UserError(f"row {row.file}: {error}\n  for this row alone: --vae {row.file}=PATH") from error
        if by_its_run:  # its end has measured it: the autoencoder is for the figure
            continue
        size, reference = model.input_size * coder.downsampling, reproduction.references.of(row)
        if coder.name != "identity" and (reference is None or own_classifier):
            raise UserError(
                f"row {row.file} trains on latents of {coder.name}, which do not say what real images are like\n"
                f"  add --extractor inception:PATH --reference VIRTUAL_imagenet{size}_labeled.npz"
            )
        known = sizes.setdefault(reference, {})
        known.setdefault(size, row)
        if len(known) > 1:
            (first, one), (second, other) = known.items()
            raise UserError(
                f"row {one.file} has images of {first}×{first}, {other.file} of {second}×{second}: each is to be "
                f"measured against real images of its own size\n  add --reference {other.file}=FILE"
            )
    _check_held_out(reproduction)
    if not sizes:
        return
    if own_classifier:
        _check_one_data_set(reproduction)
    else:
        open_extractor(reproduction.extractor, "cpu")
    for reference, rows in sizes.items():
        if reference is not None:
            [size] = rows
            check_size(size_in(Path(reference)), size, reference)


def _check_any_text(reproduction: Reproduction) -> None:
    """Raise `UserError` if prompts are given for a table that does not draw them."""
    if reproduction.prompts is None:
        return
    if not any(one.objective.text is not None for one in reproduction.experiments.values()):
        raise UserError(f"{reproduction.table.source} draws classes, not text\n  leave out --prompts")
    if reproduction.scale != "paper":
        raise UserError(
            f"at {reproduction.scale} scale the end of each run draws held-out captions\n  leave out --prompts"
        )
    captions, _ = read_captions(reproduction.prompts)
    if len(captions) < reproduction.plan.samples:
        raise UserError(
            f"prompts {reproduction.prompts} has {len(captions):,} prompts, but {reproduction.table.source} draws "
            f"{reproduction.plan.samples:,}\n"
            f"  choose them: {command('data', 'prompts', 'captions_val2014.json', 'fid30k.jsonl')}"
        )


def _check_prompts(reproduction: Reproduction, row: Row) -> None:
    """Raise `UserError` unless prompts, a reference and an extractor are all given for a row of text, or none.

    At smaller scales the end of its run measures it.
    """
    if reproduction.scale != "paper":
        return
    reference, extractor = reproduction.references.of(row), not is_classifier(reproduction.extractor)
    given = {
        "--prompts fid30k.jsonl": reproduction.prompts is not None,
        "--reference val2014.npz": reference is not None,
        "--extractor inception:PATH": extractor,
    }
    missing = [option for option, there in given.items() if not there]
    if missing and len(missing) < len(given):
        raise UserError(
            f"row {row.file} draws from text: FID needs prompts, a reference and the weights of Inception\n"
            f"  add {' '.join(missing)}, or leave out the others\n"
            f"  the files are made by causalfusion data prompts and causalfusion data reference"
        )


def _check_held_out(reproduction: Reproduction) -> None:
    """Open the held-out images of the rows, if the table measures their loss.

    Raises:
        UserError: they are missing or do not fit. Shards that are still to be written are not looked at.
    """
    if not any(column.metric == LOSS for column in reproduction.table.columns):
        return
    sets = HeldOutSets(reproduction)
    for row in reproduction.rows:
        experiment = reproduction.experiments[trial_name(row, reproduction.plan.seeds[0])]
        if is_written_later(experiment.data):
            named_held_out(experiment)
        else:
            sets.of(experiment)


def _check_one_data_set(reproduction: Reproduction) -> None:
    """Raise `UserError` unless one classifier measures all rows, in the space that the table names."""
    digits = any(name.endswith(DIGITS_SPACE) for name in reproduction.plan.metrics.values())
    folder = "shards/digits" if digits else "shards/mnist"
    advice = f"  add --extractor inception:PATH --reference FILE, or train all on one data set: data.path={folder}"
    paths: dict[Path, Row] = {}
    for row in reproduction.rows:
        experiment = reproduction.experiments[trial_name(row, reproduction.plan.seeds[0])]
        paths.setdefault(experiment.data.path, row)
    if len(paths) > 1:
        (first, one), (second, other) = [*paths.items()][:2]
        raise UserError(
            f"row {one.file} trains on {first}, {other.file} on {second}: each has a classifier of its own, under "
            f"which distances do not compare\n{advice}"
        )
    [path] = paths
    try:
        space = space_of(Manifest.read(path))
    except UserError:  # the shards are not there yet, and `prepare` will write the digits
        return
    wanted = reproduction.plan.metrics.values()
    foreign = DATA_SPACE if space == DIGITS_SPACE else DIGITS_SPACE
    if any(name.endswith(foreign) for name in wanted):
        which = "not the bundled digits" if foreign == DIGITS_SPACE else "the bundled digits"
        raise UserError(f"the table measures {', '.join(wanted)}, but the data in {path} are {which}\n{advice}")


def _made(experiment: Experiment) -> AutoencoderId | None:
    """Return the autoencoder of the shards that a row trains on. None: they are not there yet."""
    with suppress(UserError):
        return Manifest.read(experiment.data.path).autoencoder
    return None
