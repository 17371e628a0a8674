"""Class-conditional image generation: the paper's main system (Sections 3 and 4)."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from causalfusion import Draws, Model, Objective, draw, save_weights
from causalfusion.objective import Prepared

from ..config.errors import UserError
from ..config.schema import Experiment
from ..data.manifest import Manifest
from ..data.pixels import to_pixels
from ..data.read import LATENT, Batch, to_batch
from ..data.validate import CheckedShards, check_model_fits
from ..evaluation.classifier.folder import open_classifier
from ..evaluation.evaluate import SampleScorer, score_names
from ..evaluation.extractors.classifier_extractor import SPACES, space_of
from ..evaluation.identity import CLASSIFIER_KEY
from ..report.numbers import significant
from ..sampling.generate import Request, generate_together, labels_in_turn
from ..sampling.grid import sample_grid
from ..storage.run_layout import RunPaths
from ..tracking.journal import Measured, recorded_images
from ..tracking.tracker import AS_BARS, Tracker
from ..train.device import sequence_tokens, step_flops
from ..train.grids import SampleGridHook
from ..train.loop import Hook, TrainLoop
from ..train.objective import PartLoss, StepCost
from .generation import DrawnStep, GenerationTask, in_weights_type, warn_of_lost
from .probes import check_probes
from .task import TaskContext

logger = logging.getLogger(__name__)

GRID_SAMPLES_PER_CLASS = 8
_FEWEST_ROWS = 10


class ClassToImage(GenerationTask):
    """Generate images of a class: latents and labels in, the denoising loss of Equation 4, samples at the end."""

    fields = ("label", LATENT)
    collate = staticmethod(to_batch)

    def __init__(self, experiment: Experiment) -> None:
        super().__init__(experiment)
        if experiment.objective.text is not None:
            raise UserError(
                "task=class_to_image trains on classes, but the model and the objective have text\n"
                "  set task=text_image, or leave model.text and objective.text out"
            )
        self._class_names: list[str] | None = None

    def check(self, shards: CheckedShards) -> None:
        """Check the model against the shards, and that samples can be scored if that is asked for.

        Raises:
            UserError: the first fault found.
        """
        data = self.experiment.data
        check_model_fits(shards.manifest, self.experiment.model, data.path)
        check_probes(self.experiment, shards)
        if self.is_scored(shards.manifest) and shards.usable.rows < _FEWEST_ROWS:
            raise UserError(
                f"the shards in {data.path} hold {shards.usable.rows} rows, too few for the classifier that scores "
                f"samples; at least {_FEWEST_ROWS} are needed\n  end the run without scores: evaluation.score=false"
            )
        if self.experiment.evaluation.while_training and shards.manifest.autoencoder.name != "identity":
            raise UserError(
                f"evaluation.while_training=true needs latents that are pixels, but those in {data.path} are of "
                f"{shards.manifest.autoencoder.name}\n"
                f"  leave it out, and measure checkpoints afterwards: causalfusion evaluate RUN"
            )

    def describe_model(self) -> str:
        """Return width, depth and heads, and the tokens of a training sequence."""
        model = self.experiment.model
        classes = f", {model.num_class_tokens} class tokens" if model.num_class_tokens else ""
        return (
            f"width {model.hidden_size}, {model.depth} blocks, {model.num_heads} heads\n"
            f"{model.num_tokens} image tokens{classes}; training sequences of {self.sequence_span()} tokens"
        )

    def objective(self, model: nn.Module) -> ClassToImageObjective:
        """Return the paper's loss."""
        return ClassToImageObjective(cast(Model, model), self.experiment)

    def hooks(self, context: TaskContext) -> Sequence[Hook]:
        """Return the sample grids, measured if the experiment says so."""
        experiment, names = self.experiment, context.manifest.class_names
        self._class_names = names
        request = sample_request(experiment, GRID_SAMPLES_PER_CLASS * len(names), context.bf16)
        labels = labels_in_turn(len(request.labels), experiment.model.num_classes)
        measure = build_measure(experiment, context)
        return [
            SampleGridHook(
                experiment.train.sample_every_images,
                self.sampler(context),
                request,
                lambda latents: sample_grid(latents, labels, names),
                RunPaths(experiment.run_dir).samples,
                context.tracker,
                context.control,
                context.spent,
                None if measure is None else lambda latents, images: measure(latents, labels, images),
            ),
            *self.probes(context),
        ]

    def save_weights(self, folder: Path, weights: dict[str, Tensor]) -> None:
        """Write weights with the model's configuration, its noise process and the names of its classes."""
        save_weights(folder, self.experiment.model, weights, self.experiment.diffusion, self._class_names)

    def end(self, loop: TrainLoop, context: TaskContext) -> dict[str, Tensor]:
        """Generate the final samples from the EMA weights."""
        if context.journal is not None:
            context.control.note(f"generating {self.experiment.evaluation.num_samples} final samples")
        sampler = self.trained_sampler(loop, context)
        return final_samples(self.experiment, sampler, context.bf16, self.alive(context))

    def evaluate(self, final: dict[str, Tensor], manifest: Manifest, tracker: Tracker) -> dict[str, Any]:
        """Score the final samples and draw their grid.

        Returns:
            The scores, those of other numbers of AR steps with names that end with them, the classifier's hash,
            `num_samples` and `grid_path`. Scores and hash are null without `evaluation.score`. They also are where
            latents are not pixels, whose images need the autoencoder's decoder.
        """
        experiment = self.experiment
        latents, labels = final["latents"], final["labels"]
        warn_of_lost(latents)
        space, classifier_sha256 = space_of(manifest), None
        scores: dict[str, Any] = dict.fromkeys(score_names(space))
        if self.is_scored(manifest):
            scorer = SampleScorer(open_classifier(experiment.data.path, manifest))
            logger.info(f"scoring {len(labels)} samples")
            classifier_sha256 = scorer.classifier.extractor.digest
            scores = dict(scorer.score(to_pixels(latents), labels).by_name)
            for ar_steps in experiment.evaluation.ar_steps:
                others = scorer.score(to_pixels(final[f"latents_s{ar_steps}"]), labels).by_name
                scores |= {f"{name}_s{ar_steps}": others[name] for name in _for_ar_steps(space)}
            tracker.tags({"classifier.sha256": classifier_sha256, "classifier.space": space})
        grid = sample_grid(latents, labels, manifest.class_names)
        path = self.save_final_picture(grid, tracker)
        tracker.metrics({f"eval/{key}": value for key, value in scores.items() if value is not None}, AS_BARS)
        return {**scores, CLASSIFIER_KEY: classifier_sha256, "num_samples": len(labels), "grid_path": str(path)}

    def scores(self) -> list[str]:
        """Return the scores of the final samples on any data, with those of each S of `evaluation.ar_steps`."""
        if not self.experiment.evaluation.score:
            return []
        return list(dict.fromkeys(name for space in SPACES for name in self._scores_in(space)))

    def scores_on(self, manifest: Manifest) -> list[str]:
        """Return the scores where latents are pixels. Images of others need the autoencoder's decoder."""
        return self._scores_in(space_of(manifest)) if self.is_scored(manifest) else []

    def show_scores(self, summary: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Return accuracy and Fréchet distance beside those of real images, if the samples were scored."""
        if summary.get("class_accuracy") is None:
            return []
        accuracy = f"{significant(summary['class_accuracy'], 3)} of {summary['num_samples']} samples"
        if summary.get("judge_accuracy") is not None:
            seen = f"{significant(summary['judge_accuracy'], 3)} on real images it has not seen"
            accuracy += f"; the classifier itself has {seen}"
        name = next(name for space in SPACES if (name := f"fd_{space}") in summary)
        real = summary.get(f"{name}_real")
        beside = "too few real images to compare with" if real is None else f"as many real images: {real:.2f}"
        return [("class accuracy", accuracy), (name, f"{summary[name]:.2f} ({beside})")]

    def shortfall(self, summary: Mapping[str, Any]) -> str | None:
        """Return that the samples' class accuracy is nearer to guessing than to that of real images, if it is."""
        accuracy, real = summary.get("class_accuracy"), summary.get("judge_accuracy")
        guessing = 1 / self.experiment.model.num_classes
        if accuracy is None or real is None or accuracy >= (guessing + real) / 2:
            return None
        return (
            f"class_accuracy {significant(accuracy)} is nearer to guessing ({significant(guessing)}) than to real "
            f"images ({significant(real)})"
        )

    def scores_while_training(self) -> list[str]:
        """Return the scores of the grids' samples on any data."""
        return list(dict.fromkeys(name for space in SPACES for name in score_names(space)))

    def _scores_in(self, space: str) -> list[str]:
        several = [f"{name}_s{s}" for s in self.experiment.evaluation.ar_steps for name in _for_ar_steps(space)]
        return [*score_names(space), *several]

    def is_scored(self, manifest: Manifest) -> bool:
        """Return whether samples are scored: latents are pixels. Others need the autoencoder's decoder."""
        return self.experiment.evaluation.score and manifest.autoencoder.name == "identity"


class ClassToImageObjective:
    """The objective of class-conditional images, bound to a model."""

    def __init__(self, model: Model, experiment: Experiment) -> None:
        self.experiment = experiment
        self.objective = Objective(model, experiment.objective, experiment.diffusion)

    def step(self, batch: Batch, number: int) -> ClassToImageStep:
        """Draw the AR split, orders, times, noise and class dropout of a step."""
        experiment = self.experiment
        drawn = draw(
            experiment.model,
            experiment.objective,
            experiment.diffusion,
            seed=experiment.seed,
            step=number,
            samples=batch.samples,
        )
        return ClassToImageStep(self, batch, drawn)


@dataclasses.dataclass(frozen=True)
class LatentsAndLabels:
    """Inputs of one micro-batch."""

    latents: Tensor
    """(B, channels, height, width)"""
    labels: Tensor
    """(B,)"""
    ready: Prepared


@dataclasses.dataclass(frozen=True)
class ClassToImageStep(DrawnStep):
    """One optimizer step on a batch of latents and labels."""

    bound: ClassToImageObjective
    batch: Batch
    drawn: Draws

    def part(self, rows: slice) -> LatentsAndLabels:
        """Return latents, labels and draws of some rows."""
        ready = self.bound.objective.prepare(self.drawn.part(rows))
        return LatentsAndLabels(self.batch.latents[rows], self.batch.labels[rows], ready)

    def loss(self, engine: Any, part: LatentsAndLabels, totals: Tensor | None) -> PartLoss:
        """Return the weighted loss and the unweighted MSE of some rows."""
        del totals
        loss = self.bound.objective.loss(in_weights_type(engine), part.latents, part.labels, part.ready)
        return PartLoss(loss.weighted, {"mse": loss.mse})

    @property
    def cost(self) -> Callable[[], StepCost]:
        """Function that returns FLOPs and tokens of one image, exact for the AR split of this step."""
        return partial(cost_of, self.bound.experiment, self.drawn.sizes)


def cost_of(experiment: Experiment, sizes: list[int]) -> StepCost:
    """Return FLOPs and tokens of training on one image with the AR split `sizes`."""
    model, objective = experiment.model, experiment.objective
    return StepCost(
        flops=step_flops(model, sizes, objective), tokens=sequence_tokens(model, sizes, objective.time_copies)
    )


def sample_request(experiment: Experiment, count: int, bf16: bool) -> Request:
    """Return a request for `count` samples with labels in turn, from the experiment's own seed."""
    return Request(
        labels=labels_in_turn(count, experiment.model.num_classes),
        sampling=experiment.sampling,
        diffusion=experiment.diffusion,
        seed=experiment.seed,
        bf16=bf16,
        batch_size=experiment.evaluation.batch_size,
    )


def final_samples(
    experiment: Experiment, sampler: Model, bf16: bool, alive: Callable[[], None]
) -> dict[str, Tensor]:
    """Generate the final samples, on all ranks together.

    Returns:
        `labels` (B,), `latents` (B, channels, h, w), as many `latents_s<S>` for each S of `evaluation.ar_steps`.
    """
    alive()
    request = sample_request(experiment, experiment.evaluation.num_samples, bf16)
    labels = labels_in_turn(len(request.labels), experiment.model.num_classes)
    samples = {"labels": labels, "latents": generate_together(sampler, request, alive)}
    for ar_steps in experiment.evaluation.ar_steps:
        other = dataclasses.replace(request.sampling, num_ar_steps=ar_steps)
        again = dataclasses.replace(request, sampling=other)
        samples[f"latents_s{ar_steps}"] = generate_together(sampler, again, alive)
    return samples


def build_measure(experiment: Experiment, context: TaskContext) -> Callable[[Tensor, Tensor, int], None] | None:
    """Return a function that measures the samples of grids, or None. It opens its classifier at first use.

    It takes samples (B, …), their requested classes (B,), and the images seen before.
    """
    journal = context.journal
    if not experiment.evaluation.while_training or journal is None:
        return None
    scorer: list[SampleScorer] = []
    recorded = recorded_images(journal.events(), Measured)

    def measure(latents: Tensor, labels: Tensor, images: int) -> None:
        if images <= recorded:  # before a fault
            return
        if not scorer:
            alive = lambda: context.control.mark("classifier", images)  # noqa: E731
            scorer.append(SampleScorer(open_classifier(experiment.data.path, context.manifest, alive=alive)))
        found = scorer[0].score(to_pixels(latents), labels).by_name
        values = {name: value for name, value in found.items() if value is not None}
        # A Fréchet distance depends on the number of samples, so these get curves apart from the final scores.
        curves = {f"eval/{key}_n{len(labels)}": value for key, value in values.items() if key != "judge_accuracy"}
        journal.add(
            Measured(
                attempt=context.attempt,
                images=images,
                values=values,
                curves=curves,
                classifier_sha256=scorer[0].classifier.extractor.digest,
            )
        )

    return measure


def _for_ar_steps(space: str) -> tuple[str, str]:
    """Return the scores that are also measured with each S of `evaluation.ar_steps`, as `<name>_s<S>`."""
    return "class_accuracy", f"fd_{space}"
