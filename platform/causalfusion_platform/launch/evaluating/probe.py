"""Probes of a trained model: the request, its checks, and the accuracy of each layer beside an untrained model."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, get_args

import torch

from causalfusion import Model, ModelConfig, load_weights
from causalfusion.representation import Condition
from causalfusion.representation.features import check_condition, check_layer
from causalfusion.weights.folder import CONFIG_FILE, FINETUNED, WEIGHTS_FILE, load_config, read_object

from ...checkpoint.find import Weights, find_weights
from ...config.commands import command
from ...config.errors import MachineError, UserError
from ...config.schema import Experiment
from ...data.check_validation import check_validation
from ...data.chosen_rows import choose_rows
from ...data.manifest import AutoencoderId, Manifest, sha256_of
from ...data.validate import CheckedShards, open_shards
from ...evaluation.probe.features import NotFinite
from ...evaluation.probe.linear import LOGISTIC_C, RIDGE_PER_ROW, linear_by_size
from ...evaluation.probe.nearest import TEMPERATURE, neighbours_by_size
from ...evaluation.probe.probe import Accuracy, Kind, ProbeData, probe_layers, untrained
from ...evaluation.probe.scores import ProbeScore
from ...storage.atomic import write_atomically
from ..runs.folder import RunFolder

DEFAULT_ROWS = 20_000
"""Training rows, and validation rows, that are used at most."""
RESULTS_FILE = "probe.json"
FIGURE_FILE = "probe.png"
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
        """All that the numbers depend on."""
        train, validation = self.data.train, self.data.validation
        return {
            "weights": str(self.weights.folder.absolute()),
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
    shards, validation = _open_data(request, run, experiment, model)
    images = _images(found.folder)
    return ProbePlan(
        run=run,
        weights=found,
        experiment=experiment,
        model=model,
        layers=layers,
        times=times,
        kinds=kinds,
        condition=condition,
        data=_choose(request, shards, validation),
        images=images,
        name=_name(request, run, experiment, images, shards, validation),
    )


def run_probe(
    plan: ProbePlan, show: Callable[[int, int], None] = lambda *_: None, *, device: str | None = None
) -> list[ProbeScore]:
    """Measure what an earlier call has not measured, and return the scores that the plan asks for.

    They are written into the run's folder after each diffusion time, so that the same call goes on.

    Args:
        plan: the checked request.
        show: called with the number of parts done, and of all.
        device: where the model runs. Default: a GPU if there is one.

    Raises:
        MachineError: some features are not finite.
        UserError: a shard is damaged.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    wanted = [
        (kind, t, layer, random)
        for kind, random, t, layer in itertools.product(plan.kinds, (False, True), plan.times, plan.layers)
    ]
    scores = {score.place: score for score in read_scores(plan)}
    passes = [
        (random, t)
        for random in (False, True)
        for t in plan.times
        if any(place not in scores for place in wanted if place[1] == t and place[3] == random)
    ]
    total = len(passes) * len(plan.layers) * len(plan.kinds)
    done = itertools.count(1)
    models: dict[bool, Model] = {}
    for random, t in passes:
        if random not in models:
            made = untrained(plan.model, plan.experiment.seed) if random else load_weights(plan.weights.folder)
            models = {random: made.to(device).eval()}
        for score in _probe_once(plan, models[random], random, t):
            scores.setdefault(score.place, score)
            show(next(done), total)
        write_scores(plan, list(scores.values()))
    return [scores[place] for place in wanted]


def _probe_once(plan: ProbePlan, model: Model, random: bool, t: int) -> Iterator[ProbeScore]:
    diffusion = plan.experiment.diffusion
    try:
        for kind, layer, accuracy in probe_layers(
            model, plan.data, plan.layers, plan.kinds, t=t, condition=plan.condition, diffusion=diffusion
        ):
            yield _score(kind, t, layer, random, accuracy)
    except NotFinite as error:
        which = "at random initialization" if random else f"in {plan.weights.folder}"
        raise MachineError(
            f"{error}, of the model {which}\n  probe an earlier checkpoint of {plan.run.checkpoints}"
        ) from error


def _score(kind: Kind, t: int, layer: int, random: bool, accuracy: Accuracy) -> ProbeScore:
    low, high = accuracy.interval
    return ProbeScore(
        kind=kind,
        t=t,
        layer=layer,
        random=random,
        correct=accuracy.correct,
        total=accuracy.total,
        accuracy=accuracy.value,
        low=low,
        high=high,
    )


def read_scores(plan: ProbePlan) -> list[ProbeScore]:
    """Return the scores of earlier calls with the same weights, data and settings."""
    try:
        tree = json.loads((plan.folder / RESULTS_FILE).read_bytes())
        same = tree["provenance"] == plan.provenance
        return [ProbeScore.model_validate(score) for score in tree["scores"]] if same else []
    except (OSError, ValueError, KeyError, TypeError):
        return []


def write_scores(plan: ProbePlan, scores: Sequence[ProbeScore]) -> Path:
    """Write scores with their provenance, and return their file."""
    path = plan.folder / RESULTS_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [score.model_dump() for score in sorted(scores, key=lambda score: score.place)]
    tree = {"provenance": plan.provenance, "scores": rows}
    write_atomically(path, (json.dumps(tree, indent=2) + "\n").encode())
    return path


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


def _open_data(
    request: ProbeRequest, run: RunFolder, experiment: Experiment, model: ModelConfig
) -> tuple[CheckedShards, CheckedShards]:
    """Open the shards of both parts, and check them against the model and each other."""
    own = experiment.data
    path, validation = request.data or own.path, request.validation or own.validation
    if validation is None:
        raise UserError(
            f"the run {run.name!r} names no validation images, which no training sees\n"
            f"  name their shards: {command('probe', request.checkpoint, '--validation')} FOLDER\n"
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
            f"the latents in {path} are of the autoencoder {_autoencoder(manifest.autoencoder)}, but run "
            f"{run.name!r} was trained on those of {_autoencoder(made)}\n"
            f"  encode the images with that of the run, or name other shards: --data FOLDER --validation FOLDER"
        )


def _autoencoder(found: AutoencoderId) -> str:
    weights = f", weights {found.weights_sha256[:16]}" if found.weights_sha256 else ""
    return f"{found.name}, scale {found.scale:g}{weights}"


def _choose(request: ProbeRequest, shards: CheckedShards, validation: CheckedShards) -> ProbeData:
    train = choose_rows(shards.folder, shards.usable, request.rows, per_class=request.per_class, seed=request.seed)
    counts = Counter(train.labels.tolist())
    names = shards.manifest.class_names
    if request.per_class is not None:
        few = [names[label] for label in range(len(names)) if counts[label] < request.per_class]
        if few:
            most = min(counts[label] for label in range(len(names)))
            raise UserError(
                f"--per-class {request.per_class}: class {few[0]!r} in {shards.folder} has fewer rows\n"
                f"  ask for at most {most}, or for all labels: leave --per-class out"
            )
        if len(train) > request.rows:
            raise UserError(
                f"--per-class {request.per_class} asks for {len(train):,} rows, --rows allows {request.rows:,}\n"
                f"  ask for fewer, or allow more: --rows {len(train)}"
            )
    if len(counts) < 2:
        raise UserError(
            f"{len(train):,} training rows of {shards.folder} have one class\n  take more rows: --rows N"
        )
    others = choose_rows(validation.folder, validation.usable, request.rows, seed=request.seed)
    return ProbeData(train, others, request.seed)


def _images(weights: Path) -> int:
    """Return the images that the weights had seen, by the name of their checkpoint, or 0 for others."""
    _, _, number = weights.parent.name.partition("images-")
    return int(number) if number.isdecimal() else 0


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
