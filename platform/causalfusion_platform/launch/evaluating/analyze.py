"""Analyses of one finished run, in this process."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path

import torch

from causalfusion import Model, load_weights

from ...checkpoint.find import find_weights
from ...config.errors import UserError
from ...config.schema import Experiment
from ...data.read import Batch, read_all
from ...data.validate import open_shards
from ...evaluation.evaluate import SampleScorer
from ...report.figures import loss_figure, plane_figure
from ...sampling.generate import Request, generate, labels_in_turn
from ..runs.folder import RunFolder
from .figure_four import draw_step_sizes, losses_by_step

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

    The loss is measured on the training images, since the bundled digits have no others. `show` is called with the
    number of points measured, and of all.

    Raises:
        UserError: no run, no weights, latents that are not pixels, or steps that do not fit the model.
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
    manifest = open_shards(experiment.data.path).usable
    if manifest.autoencoder.name != "identity":
        raise UserError(
            f"latents in {experiment.data.path} are not pixels; the classifier of digits cannot score them"
        )
    data = read_all(experiment.data.path, manifest)
    model = load_weights(find_weights(run).folder, device="cuda" if torch.cuda.is_available() else "cpu")
    numbers = {
        "plane": _plane(experiment, model, data, out, ar_steps, diffusion_steps, num, show),
        "ar_step_sizes": draw_step_sizes(
            tokens, {*_LAWS, experiment.objective.ar_decay}, experiment.seed, out / "ar_step_sizes.png"
        ),
        "loss_by_step": _losses(experiment, model, data, out, ar_steps),
    }
    (out / "analysis.json").write_text(json.dumps(numbers, indent=2) + "\n")
    return out


def _plane(
    experiment: Experiment,
    model: Model,
    data: Batch,
    out: Path,
    ar_steps: list[int],
    diffusion_steps: list[int],
    num: int,
    show: Callable[[int, int], None],
) -> list[dict[str, float]]:
    scorer = SampleScorer(
        data.latents,
        data.labels,
        num_classes=experiment.model.num_classes,
        epochs=experiment.evaluation.classifier_epochs,
        seed=experiment.seed,
    )
    labels = labels_in_turn(num, experiment.model.num_classes)
    points: list[dict[str, float]] = []
    for size in ar_steps:
        for steps in diffusion_steps:
            sampling = dataclasses.replace(
                experiment.sampling, num_ar_steps=size, step_sizes="equal", num_inference_steps=steps
            )
            request = Request(
                labels=labels, sampling=sampling, diffusion=experiment.diffusion, seed=experiment.seed, bf16=False
            )
            scores = scorer.score(generate(model, request, list(range(num))), labels)
            point = {"ar_steps": size, "diffusion_steps": steps, **dataclasses.asdict(scores)}
            points.append(point)
            logger.info(
                f"S = {size:<3} T = {steps:<4} class accuracy {scores.class_accuracy:.3f}  "
                f"fd_digits_cnn {scores.fd_digits_cnn:.2f}"
            )
            show(len(points), len(ar_steps) * len(diffusion_steps))
    width = len(diffusion_steps)
    values = [point["fd_digits_cnn"] for point in points]
    plane_figure(
        [values[start : start + width] for start in range(0, len(values), width)],
        ar_steps,
        diffusion_steps,
        what=f"fd_digits_cnn of {num} samples (real ones: {points[0]['fd_digits_cnn_real']:.2f}), lower is better",
        title=f"The factorization plane, run {experiment.name}",
        path=out / "plane.png",
    )
    return points


def _losses(
    experiment: Experiment, model: Model, data: Batch, out: Path, ar_steps: list[int]
) -> dict[str, list[float]]:
    logger.info(f"measuring the loss of each AR step on {len(data.labels):,} images, for S = {ar_steps}")
    losses = losses_by_step(model, data, experiment.diffusion, ar_steps, experiment.seed + 1)
    loss_figure(losses, title="Loss of each AR step on the training images", path=out / "loss_by_step.png")
    return {str(steps): loss for steps, loss in losses.items()}
