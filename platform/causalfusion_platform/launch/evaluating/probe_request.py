"""Request for probes of a run's layers, its checks, and its plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, get_args

from causalfusion import ModelConfig
from causalfusion.representation import Condition
from causalfusion.representation.features import check_condition, check_layer
from causalfusion.weights.folder import CONFIG_FILE, FINETUNED, WEIGHTS_FILE, load_config, read_object

from ...checkpoint.find import Weights, find_weights
from ...config.commands import command
from ...config.errors import UserError
from ...config.schema import Experiment
from ...data.manifest import sha256_of
from ...data.validate import CheckedShards
from ...evaluation.probe.linear import LOGISTIC_C, RIDGE_PER_ROW, linear_by_size
from ...evaluation.probe.nearest import TEMPERATURE, neighbours_by_size
from ...evaluation.probe.probe import Kind, ProbeData
from ..runs.folder import RunFolder
from .probe_data import choose_both_parts, open_both_parts

DEFAULT_ROWS = 20_000
"""Training rows, and validation rows, that are used at most."""
_Choice = TypeVar("_Choice", bound=str)


@dataclass(frozen=True, kw_only=True)
class ProbeRequest:
    """Request for probes."""

    checkpoint: Path
    """Folder of a run (its newest checkpoint), or of one of its checkpoints."""
    layers: str = "all"
    """`all`, or numbers such as 1,3,6. 0 is the embedding, i the output of block i."""
    times: str = "0"
    """Diffusion times such as 0,50,200. 0: clean latents."""
    kinds: str = "linear,knn"
    condition: str = "none"
    """Condition of a DiT."""
    per_class: int | None = None
    """Labelled training rows of each class. Default: all."""
    rows: int = DEFAULT_ROWS
    data: Path | None = None
    """Shards of the labelled training rows. Default: those that the run was trained on."""
    validation: Path | None = None
    """Shards of validation rows. Default: the run's `data.validation`."""
    seed: int = 0
    """Seed of the choice of rows and of the noise."""


@dataclass(frozen=True)
class ProbePlan:
    """Checked request."""

    run: RunFolder
    weights: Weights
    experiment: Experiment
    model: ModelConfig
    layers: tuple[int, ...]
    times: tuple[int, ...]
    kinds: tuple[Kind, ...]
    condition: Condition
    data: ProbeData
    images: int
    """Images that the weights had seen."""
    name: str
    """Name of the settings that are not the default ones, such as `n10`, or no text."""

    @property
    def folder(self) -> Path:
        """Folder of the results."""
        return self.run.probes / (self.name or "all-labels")

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """All that the numbers depend on. No path: a run may be moved."""
        train, validation = self.data.train, self.data.validation
        return {
            "checkpoint": self.weights.folder.absolute().parent.name,
            "weights_sha256": sha256_of(self.weights.folder / WEIGHTS_FILE),
            "images_seen": self.images,
            "data": train.manifest.digest,
            "validation": validation.manifest.digest,
            "rows": len(train),
            "validation_rows": len(validation),
            "classes": len(train.manifest.class_names),
            "condition": self.condition,
            "seed": self.data.seed,
            "initial_weights_seed": self.experiment.seed,
            "linear": describe_linear(len(train), len(train.manifest.class_names)),
            "knn": describe_nearest(len(train)),
        }


def describe_linear(rows: int, classes: int) -> str:
    """Return the linear classifier for a size of data, with its fixed settings."""
    if linear_by_size(rows, classes) == "logistic":
        return f"logistic regression of standardized features, C = {LOGISTIC_C:g}"
    return f"ridge regression of standardized features in closed form, {RIDGE_PER_ROW:g} a row"


def describe_nearest(rows: int) -> str:
    """Return the settings of nearest neighbours for a number of training rows."""
    return f"k = {neighbours_by_size(rows)} by cosine, weights exp(s / {TEMPERATURE:g})"


def plan_probe(request: ProbeRequest) -> ProbePlan:
    """Check a request against the model and its data, and choose the rows. Nothing is written.

    Raises:
        UserError: the first fault found.
    """
    found = find_weights(request.checkpoint)
    model = _read_model(found.folder)
    run = RunFolder(found.run) if found.run is not None else None
    if run is None or (experiment := run.experiment) is None:
        raise UserError(
            f"the weights in {found.folder} are of no run, whose data a probe could read\n"
            f"  name a run or one of its checkpoints: {command('runs', 'list')}"
        )
    if request.rows < 2 or request.seed < 0 or (request.per_class is not None and request.per_class < 1):
        raise UserError(
            f"--rows must be at least 2, --per-class at least 1 and --seed at least 0, got {request.rows}, "
            f"{request.per_class} and {request.seed}"
        )
    condition = _one_of(request.condition, get_args(Condition), "--condition")
    layers = (*range(model.depth + 1),) if request.layers == "all" else read_whole(request.layers, "--layers")
    times = read_whole(request.times, "--times")
    try:
        check_condition(model, condition)
        for layer in layers:
            check_layer(layer, model.depth)
    except ValueError as error:
        raise UserError(f"{error}\n  probe all layers: {command('probe', request.checkpoint)}") from error
    last = experiment.diffusion.num_train_steps - 1
    if max(times) > last:
        raise UserError(f"--times {request.times}: the run has the times 0 (clean) to {last}")
    kinds = tuple(_one_of(kind, get_args(Kind), "--kinds") for kind in _parts(request.kinds))
    shards, validation = open_both_parts(run, experiment, model, request.data, request.validation)
    return ProbePlan(
        run=run,
        weights=found,
        experiment=experiment,
        model=model,
        layers=layers,
        times=times,
        kinds=kinds,
        condition=condition,
        data=choose_both_parts(
            shards, validation, rows=request.rows, per_class=request.per_class, seed=request.seed
        ),
        images=found.images,
        name=_name(request, run, experiment, found.images, shards, validation),
    )


def read_whole(text: str, option: str) -> tuple[int, ...]:
    """Read 0,50,200: ascending, each once.

    Raises:
        UserError: these are not whole numbers.
    """
    parts = _parts(text)
    if not parts or not all(part.isdecimal() for part in parts):
        raise UserError(f"{option} {text!r} are not whole numbers such as 0,1,3")
    return tuple(sorted({int(part) for part in parts}))


def _parts(text: str) -> list[str]:
    return list(dict.fromkeys(part.strip() for part in text.split(",")))


def _one_of(value: str, allowed: Sequence[_Choice], option: str) -> _Choice:
    for choice in allowed:
        if value == choice:
            return choice
    raise UserError(f"{option} must be {' or '.join(allowed)}, got {value!r:.60}")


def _read_model(folder: Path) -> ModelConfig:
    try:
        kind = read_object(folder / CONFIG_FILE).get("architecture")
        if kind not in FINETUNED:
            return load_config(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} holds no weights of a known model: {error}") from error
    raise UserError(
        f"{folder} holds a fine-tuned {kind}, whose scores are those of its own task\n"
        f"  see them: {command('runs', 'show', 'RUN')}; probe the run that it was fine-tuned from: "
        f"{command('probe', 'RUN')}"
    )


def _name(
    request: ProbeRequest,
    run: RunFolder,
    experiment: Experiment,
    images: int,
    shards: CheckedShards,
    validation: CheckedShards,
) -> str:
    """Return the settings that are not the default ones, for the folder of results and the names of curves."""
    parts = [] if run.finished and images == experiment.train.total_images else [f"images{images}"]
    parts += ["null"] if request.condition == "null" else []
    parts += [f"n{request.per_class}"] if request.per_class is not None else []
    parts += [f"rows{request.rows}"] if request.rows != DEFAULT_ROWS else []
    parts += [f"seed{request.seed}"] if request.seed else []
    for option, given, found in (("data", request.data, shards), ("val", request.validation, validation)):
        parts += [f"{option}{found.manifest.digest[:8]}"] if given is not None else []
    return "-".join(parts)
