"""The task of text and images: what a run reads, trains, draws, describes and measures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

from PIL import Image
from torch import Tensor, nn

from causalfusion import CaptionConfig, CausalFusion, CausalFusionConfig, TextConfig, save_weights

from ...config.errors import UserError
from ...config.schema import Experiment
from ...data.caption_tokens import (
    CAPTIONS,
    check_captions,
    find_tokenizer,
    read_tokenizer,
)
from ...data.captioned_digits import cells_in, is_captioned_digits
from ...data.captioned_rows import CaptionedRows, read_captioned_rows
from ...data.manifest import Manifest
from ...data.read import LATENT
from ...data.validate import CheckedShards, check_model_fits
from ...evaluation.classifier.folder import open_classifier
from ...evaluation.composition import unseen_prompts
from ...evaluation.evaluate import SampleScorer
from ...evaluation.extractors.classifier_extractor import space_of
from ...evaluation.identity import CLASSIFIER_KEY
from ...evaluation.text_image import TextImageScores
from ...sampling.text_grid import caption_grid, prompt_grid, stacked
from ...storage.run_layout import RunPaths
from ...tracking.tracker import AS_BARS, Tracker
from ...train.grids import SampleGridHook
from ...train.loop import Hook, TrainLoop
from ..captions import CaptionTask, check_same_tokenizer
from ..final import unpacked
from ..generation import GenerationTask, warn_of_lost
from ..probes import check_probes
from ..task import TaskContext
from .both_directions import BothDirections
from .checks import check_captioned_validation, check_settings, check_share
from .scoring import score_captions, score_names, score_samples
from .training import TextImageBatch, TextImageTraining, noise_batch, to_batch

_GRID_PROMPTS, _GRID_SAMPLES, _GRID_CAPTIONS = 8, 4, 8


class TextImage(CaptionTask, GenerationTask):
    """Draw images from text and describe them: latents and captions in, both losses, both directions at the end."""

    fields = (CAPTIONS, LATENT)
    collate = staticmethod(to_batch)

    def __init__(self, experiment: Experiment) -> None:
        super().__init__(experiment)
        self.model_config: CausalFusionConfig = check_settings(experiment)

    @property
    def text(self) -> TextConfig:
        """Text of the model."""
        return cast(TextConfig, self.model_config.text)

    def check(self, shards: CheckedShards) -> None:
        """Check the model, the captions and the tokenizer against the shards.

        Raises:
            UserError: the first fault found.
        """
        experiment = self.experiment
        check_model_fits(shards.manifest, experiment.model, experiment.data.path)
        check_probes(experiment, shards)
        check_share(experiment)
        check_captions(experiment.data.path, shards.usable)
        found = find_tokenizer(experiment.data.path, shards.manifest, self.text, experiment.data.tokenizer)
        if found is not None:
            check_same_tokenizer(experiment, found)
        elif shards.bad:
            raise UserError(
                f"the tokenizer is trained on the captions of all shards, but {', '.join(shards.bad)} in "
                f"{experiment.data.path} cannot be read\n"
                f"  restore the files, or set data.tokenizer to a tokenizer.json"
            )

    def check_paths(self) -> None:
        """Check the validation shards and a given tokenizer."""
        data = self.experiment.data
        if data.validation is not None:
            check_captioned_validation(self.experiment, data.validation)
        if data.tokenizer is not None:
            read_tokenizer(data.tokenizer, self.text)

    def example_batch(self, rows: int) -> TextImageBatch:
        """Return a batch of noise and of texts of the largest length."""
        return noise_batch(self.model_config, rows)

    def build_model(self) -> CausalFusion:
        """Return a model of the configured kind and size."""
        return cast(CausalFusion, super().build_model())

    def describe_model(self) -> str:
        """Return width, depth and heads, the vocabulary, and the tokens of a training sequence."""
        model, text = self.model_config, self.text
        tied = "tied" if text.tied else "untied"
        return (
            f"width {model.hidden_size}, {model.depth} blocks, {model.num_heads} heads; vocabulary of "
            f"{text.vocabulary:,} tokens, {tied}\n"
            f"{model.num_tokens} image tokens, up to {text.max_tokens} text tokens; training sequences of "
            f"{self.sequence_span()} tokens"
        )

    def activation_bytes(self, rows: int, precision: str) -> float:
        """Estimate the activations of the longest sequence, and the logits of the described images.

        A micro-batch may lack images of one kind. The model then runs on one more: see `TextImageObjective`.
        """
        share = Fraction(str(self.experiment.objective.text.share))  # type: ignore[union-attr]
        described = math.ceil(rows * share)
        if 0 < share < 1 and (rows * share < 1 or rows * (1 - share) < 1):
            rows += 1
        # Logits, their copy in fp32, and its gradient.
        logits = described * self.text.max_tokens * self.text.vocabulary * 10
        return super().activation_bytes(rows, precision) + logits

    def objective(self, model: nn.Module) -> TextImageTraining:
        """Return the losses of images and of text."""
        return TextImageTraining(cast(CausalFusion, model), self.experiment)

    def save_weights(self, folder: Path, weights: dict[str, Tensor]) -> None:
        """Write weights with the model's configuration, its noise process and its tokenizer."""
        save_weights(folder, self.model_config, weights, self.experiment.diffusion, tokenizer=self.tokenizer)

    def hooks(self, context: TaskContext) -> Sequence[Hook]:
        """Return the pictures of both directions: prompts with their samples, and images with their captions."""
        experiment = self.experiment
        validation = self._read_validation(max(_GRID_PROMPTS, _GRID_CAPTIONS), context.manifest)
        prompts = [texts[0] for texts in validation.captions[:_GRID_PROMPTS] for _ in range(_GRID_SAMPLES)]
        shown = validation.latents[:_GRID_CAPTIONS]
        directions = self._both_directions(context)

        def picture(latents: Tensor) -> Image.Image:
            captions = directions.captions(shown, CaptionConfig())
            return stacked([prompt_grid(prompts[::_GRID_SAMPLES], latents), caption_grid(shown, captions)])

        return [
            SampleGridHook(
                experiment.train.sample_every_images,
                directions.model,
                directions.request(prompts),
                picture,
                RunPaths(experiment.run_dir).samples,
                context.tracker,
                context.control,
                context.spent,
            ),
            *self.probes(context),
        ]

    def end(self, loop: TrainLoop, context: TaskContext) -> dict[str, Tensor]:
        """Draw images from validation captions, and describe validation images, with the EMA weights.

        On handwritten digits prompts of property cells that no training row has are drawn too.
        """
        self.trained_sampler(loop, context)
        manifest = context.manifest
        unseen = unseen_prompts(cells_in(self.experiment.data.path, manifest)) if self.is_scored(manifest) else []
        return self._both_directions(context).final(self._final_rows(manifest), unseen, self.alive(context))

    def evaluate(self, final: dict[str, Tensor], manifest: Manifest, tracker: Tracker) -> dict[str, Any]:
        """Score both directions and draw them.

        Returns:
            The scores, `num_samples`, `num_captions`, `validation_digest` and `grid_path`. Names of scores at other
            guidance scales, or of a beam search, end with them. Those that end with `_best` are of the scale with
            the best class accuracy, `t2i_guidance_best`. Only samples of handwritten digits have scores. Those of
            property cells that are in no training row begin with `t2i_unseen_`.
        """
        experiment, evaluation = self.experiment, self.experiment.evaluation
        warn_of_lost(final["latents"])
        source = manifest if experiment.data.validation is None else Manifest.read(experiment.data.validation)
        validation, captions = self._final_rows(manifest), unpacked(final["captions"])
        scorer = TextImageScores(manifest, experiment.data.path, validation, source)
        scores: dict[str, Any] = dict(score_captions(final, scorer)) if evaluation.score else {}
        best, classifier_sha256 = "", None
        if self.is_scored(manifest):
            samples = SampleScorer(open_classifier(experiment.data.path, manifest))
            classifier_sha256 = samples.classifier.extractor.digest
            tracker.tags({"classifier.sha256": classifier_sha256})
            found = score_samples(final, validation, scorer, samples)
            best = found.best
            scale = float(best.removeprefix("_w")) if best else experiment.sampling.guidance_scale
            scores |= found.values | {"t2i_guidance_best": scale}
        prompts = validation.prompts(evaluation.num_samples)
        picture = _picture(prompts, final[f"latents{best}"], validation.latents, captions)
        path = self.save_final_picture(picture, tracker)
        tracker.metrics({f"eval/{key}": value for key, value in scores.items() if value is not None}, AS_BARS)
        return {
            **scores,
            CLASSIFIER_KEY: classifier_sha256,
            "num_samples": len(prompts),
            "num_captions": len(captions),
            "validation_digest": source.digest,
            "grid_path": str(path),
        }

    def scores(self) -> list[str]:
        """Return the scores of both directions that any data may have."""
        return score_names(self.experiment.evaluation) if self.experiment.evaluation.score else []

    def scores_on(self, manifest: Manifest) -> list[str]:
        """Return the scores of a run on these shards: those of properties only for handwritten digits."""
        if self.is_scored(manifest):
            return score_names(self.experiment.evaluation, [space_of(manifest)])
        return [name for name in self.scores() if name.startswith("cider_d_")]

    def show_scores(self, summary: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Return the scores of both directions in two lines for each way of decoding or guidance."""
        return TextImageScores.show(summary)

    def is_scored(self, manifest: Manifest) -> bool:
        """Return whether samples are scored: the properties of handwritten digits can be measured."""
        return self.experiment.evaluation.score and is_captioned_digits(manifest)

    def _both_directions(self, context: TaskContext) -> BothDirections:
        model = cast(CausalFusion, self.sampler(context))
        return BothDirections(self.experiment, model, self.tokenizer, context.bf16)

    def _final_rows(self, manifest: Manifest) -> CaptionedRows:
        evaluation = self.experiment.evaluation
        return self._read_validation(max(evaluation.num_samples, evaluation.num_captions), manifest)

    def _read_validation(self, rows: int, manifest: Manifest) -> CaptionedRows:
        """Return the first rows of the validation shards, or without such of those of training, in `manifest`."""
        folder = self.experiment.data.validation
        if folder is None:
            return read_captioned_rows(self.experiment.data.path, manifest, rows)
        return read_captioned_rows(folder, Manifest.read(folder), rows)


def _picture(prompts: Sequence[str], samples: Tensor, images: Tensor, captions: Sequence[str]) -> Image.Image:
    """Draw the first prompts with a sample each, and the first images with their captions."""
    shown = min(_GRID_PROMPTS, len(prompts))
    drawn = prompt_grid(prompts[:shown], samples[:shown])
    return stacked([drawn, caption_grid(images[:_GRID_CAPTIONS], captions[:_GRID_CAPTIONS])])
