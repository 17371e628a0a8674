"""Analyses of one finished run, in this process."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from causalfusion import Model, load_weights

from ...checkpoint.find import find_weights
from ...config.commands import command
from ...config.errors import UserError
from ...config.schema import Experiment
from ...data.manifest import Manifest
from ...data.pixels import to_pixels
from ...data.read import read_all
from ...data.validate import open_shards
from ...evaluation.classifier.folder import open_classifier
from ...evaluation.evaluate import SampleScorer
from ...evaluation.identity import CLASSIFIER_KEY
from ...report.figures import loss_figure, plane_figure
from ...report.numbers import significant
from ...sampling.generate import Request, generate, labels_in_turn
from ...sampling.prompts import text_of
from ..runs.folder import RunFolder
from .figure_four import LOSS_ROWS, draw_step_sizes, losses_by_step
from .shards import shards_of

logger = logging.getLogger(__name__)

_LAWS = (1.0, 0.95, 0.9, 0.8)


def read_numbers(text: str) -> list[int]:
    """Read 1,2,4.

    Raises:
        UserError: these are not positive whole numbers.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise UserError(f"{text!r} are not whole numbers such as 1,2,4")
    return [int(part) for part in parts]


def analyze_run(
    run: Path,
    out: Path,
    *,
    ar_steps: list[int],
    diffusion_steps: list[int],
    num: int,
    show: Callable[[int, int], None] = lambda *_: None,
) -> Path:
    """Write plane.png, ar_step_sizes.png, loss_by_step.png and analysis.json into `out`, and return it.

    The loss is measured on the first training rows. The plane is left out where latents are not pixels, because the
    classifier of the data set scores its samples. `show` is called with the number of points and losses measured,
    and of all.

    Raises:
        UserError: no run, no weights, or steps that do not fit the model.
    """
    experiment = RunFolder(run).experiment
    if experiment is None:
        raise UserError(f"{run} is no folder of a run\n  train one: causalfusion train quickstart")
    tokens, times = experiment.model.num_tokens, experiment.diffusion.num_train_steps
    if experiment.model.architecture == "dit":
        raise UserError(f"{run} is a DiT, which has no AR steps to analyze")
    if max(ar_steps) > tokens or max(diffusion_steps) > times:
        raise UserError(
            f"AR steps {ar_steps} and diffusion steps {diffusion_steps} must not exceed the run's {tokens} tokens "
            f"and {times} times"
        )
    if text_of(experiment.model) is not None:
        raise UserError(
            f"{run} is a model of text: its samples have no classes that the plane could be scored by\n"
            f"  measure its places: {command('evaluate', run, '--prompts')} FILE.jsonl --ar-steps 1,2,4"
        )
    weights = find_weights(run)
    shards_of(weights)
    manifest = open_shards(experiment.data.path).usable
    try:
        model = load_weights(weights.folder, device="cuda" if torch.cuda.is_available() else "cpu")
    except (RuntimeError, ValueError) as error:
        raise UserError(str(error)) from error
    out.mkdir(parents=True, exist_ok=True)
    numbers: dict[str, Any] = {}
    of_plane = len(ar_steps) * len(diffusion_steps) if manifest.autoencoder.name == "identity" else 0
    done, total = itertools.count(1), of_plane + len(ar_steps)
    measured = lambda: show(next(done), total)  # noqa: E731
    if manifest.autoencoder.name == "identity":
        classifier = open_classifier(experiment.data.path, manifest)
        scorer = SampleScorer(classifier)
        numbers["plane"] = _plane(experiment, model, scorer, out, ar_steps, diffusion_steps, num, measured)
        numbers[CLASSIFIER_KEY] = classifier.extractor.digest
    else:
        logger.info(
            f"no plane: latents in {experiment.data.path} are of {manifest.autoencoder.name}, not pixels\n"
            f"  measure its places: {command('evaluate', run)} --vae PATH --extractor inception:PATH "
            f"--reference FILE"
        )
    numbers |= {
        "ar_step_sizes": draw_step_sizes(
            tokens, {*_LAWS, experiment.objective.ar_decay}, experiment.seed, out / "ar_step_sizes.png"
        ),
        "loss_by_step": _losses(experiment, model, manifest, out, ar_steps, measured),
    }
    (out / "analysis.json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    return out


def _plane(
    experiment: Experiment,
    model: Model,
    scorer: SampleScorer,
    out: Path,
    ar_steps: list[int],
    diffusion_steps: list[int],
    num: int,
    measured: Callable[[], None],
) -> list[dict[str, float | None]]:
    labels = labels_in_turn(num, experiment.model.num_classes)
    points: list[dict[str, float | None]] = []
    values: list[float] = []
    for size in ar_steps:
        for steps in diffusion_steps:
            sampling = dataclasses.replace(
                experiment.sampling,
                num_ar_steps=size,
                step_sizes="equal",
                num_inference_steps=steps,
                step_schedule="constant",
                last_inference_steps=None,
            )
            request = Request(
                labels=labels, sampling=sampling, diffusion=experiment.diffusion, seed=experiment.seed, bf16=False
            )
            scores = scorer.score(to_pixels(generate(model, request, list(range(num)))), labels)
            points.append({"ar_steps": size, "diffusion_steps": steps, **scores.by_name})
            values.append(scores.distance)
            logger.info(
                f"S = {size:<3} T = {steps:<4} class accuracy {significant(scores.class_accuracy, 3)}  "
                f"fd_{scores.space} {scores.distance:.2f}"
            )
            measured()
    width = len(diffusion_steps)
    real = "" if scores.distance_real is None else f" (real ones: {scores.distance_real:.2f})"
    plane_figure(
        [values[start : start + width] for start in range(0, len(values), width)],
        ar_steps,
        diffusion_steps,
        what=f"fd_{scores.space} of {num} samples{real}, lower is better",
        title=f"The factorization plane, run {experiment.name}",
        path=out / "plane.png",
    )
    return points


def _losses(
    experiment: Experiment,
    model: Model,
    manifest: Manifest,
    out: Path,
    ar_steps: list[int],
    measured: Callable[[], None],
) -> dict[str, list[float]]:
    data = read_all(experiment.data.path, manifest, at_most=LOSS_ROWS)
    logger.info(f"measuring the loss of each AR step on {len(data.labels):,} images, for S = {ar_steps}")
    losses: dict[int, list[float]] = {}
    for steps in ar_steps:
        losses |= losses_by_step(model, data, experiment.diffusion, [steps], experiment.seed + 1)
        measured()
    loss_figure(
        {f"S = {steps}": loss for steps, loss in losses.items()},
        title="Loss of each AR step on the training images",
        path=out / "loss_by_step.png",
        shared_axis=True,
    )
    return {str(steps): loss for steps, loss in losses.items()}
