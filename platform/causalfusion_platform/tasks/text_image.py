"""Text and images in one model (Section 4.3, Table 6a): images drawn from text, and captions of images."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from causalfusion import (
    CaptionConfig,
    CausalFusion,
    CausalFusionConfig,
    Draws,
    Prompts,
    TextConfig,
    TextImageObjective,
    Texts,
    build_model,
    draw,
    save_weights,
    text_last,
)
from causalfusion.flops import forward_flops, training_flops
from causalfusion.text.tokenizer import Tokenizer
from causalfusion.weights.folder import load_config

from ..checkpoint import store
from ..config.errors import UserError
from ..config.schema import Experiment
from ..data.caption_tokens import (
    CAPTIONS,
    CUT,
    LENGTHS,
    TOKENS,
    DrawCaptions,
    check_captions,
    find_tokenizer,
    open_tokenizer,
    read_tokenizer,
)
from ..data.captioned_digits import held_out_folder, is_captioned_digits
from ..data.captioned_rows import CaptionedRows, read_captioned_rows
from ..data.manifest import Manifest
from ..data.read import LATENT, Columns
from ..data.validate import CheckedShards, check_model_fits, open_shards
from ..evaluation.classifier.folder import open_classifier
from ..evaluation.evaluate import SampleScorer
from ..evaluation.identity import CLASSIFIER_KEY
from ..evaluation.text_image import TextImageScores
from ..sampling.describe import describe, describe_together
from ..sampling.generate import Request, generate_together
from ..sampling.text_grid import caption_grid, prompt_grid, stacked
from ..storage.run_layout import SAMPLES_FOLDER, RunPaths
from ..tracking.tracker import AS_BARS, Tracker
from ..train.grids import SampleGridHook
from ..train.loop import Hook, TrainLoop
from ..train.objective import PartLoss, StepCost
from .activations import activation_bytes, longest_sequence, shortest_sequence
from .task import Task, TaskContext

logger = logging.getLogger(__name__)

_GRID_PROMPTS, _GRID_SAMPLES, _GRID_CAPTIONS = 8, 4, 8


@dataclass(frozen=True)
class TextImageBatch:
    """Part of a global batch for one worker: images and one caption of each."""

    samples: range
    """Positions in the stream of rows (images seen before each one), which seed the samples' draws."""
    latents: Tensor
    """(B, channels, height, width) float32"""
    tokens: Tensor
    """(B, T) int64"""
    lengths: Tensor
    """(B,) int64"""
    cut: Tensor
    """(B,) float32: 1 for a caption that is longer than the model takes."""

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.latents)


class TextImage(Task):
    """Draw images from text and describe them: latents and captions in, both losses, both directions at the end."""

    fields = (CAPTIONS, LATENT)

    def __init__(self, experiment: Experiment) -> None:
        super().__init__(experiment)
        self._sampling_model: CausalFusion | None = None
        model = experiment.model
        if not isinstance(model, CausalFusionConfig) or model.text is None or model.num_class_tokens:
            raise UserError(
                "task=text_image trains a model of text without classes\n"
                "  set model.text, such as model.text.vocabulary=512, and model.class_tokens=0; "
                "or task=class_to_image"
            )
        if experiment.objective.text is None:
            raise UserError("task=text_image needs objective.text\n  set it, such as objective.text.share=0.1")
        unread = [
            key
            for key, given in (
                ("ar_steps", experiment.evaluation.ar_steps),
                ("while_training", experiment.evaluation.while_training),
            )
            if given
        ]
        if unread:
            raise UserError(
                f"task=text_image does not read evaluation.{unread[0]}\n"
                f"  leave it out, and measure checkpoints afterwards: causalfusion evaluate RUN"
            )
        self.model_config: CausalFusionConfig = model
        self.text: TextConfig = model.text

    def check(self, shards: CheckedShards) -> None:
        """Check the model, the captions and the tokenizer against the shards.

        Raises:
            UserError: the first fault found.
        """
        experiment = self.experiment
        check_model_fits(shards.manifest, experiment.model, experiment.data.path)
        share, batch = experiment.objective.text.share, experiment.train.global_batch_size  # type: ignore[union-attr]
        if 0 < Fraction(str(share)) * batch < 1:
            raise UserError(
                f"objective.text.share {share} of a global batch of {batch} images is less than one image: "
                f"some steps would have no text to learn\n"
                f"  set train.global_batch_size to at least {math.ceil(1 / Fraction(str(share)))}"
            )
        check_captions(experiment.data.path, shards.usable)
        found = find_tokenizer(experiment.data.path, shards.manifest, self.text, experiment.data.tokenizer)
        if found is not None:
            self._check_same(found)
        elif shards.bad:
            raise UserError(
                f"the tokenizer is trained on the captions of all shards, but {', '.join(shards.bad)} in "
                f"{experiment.data.path} cannot be read\n"
                f"  restore the files, or set data.tokenizer to a tokenizer.json"
            )

    def check_paths(self) -> None:
        """Check the held-out shards and a given tokenizer."""
        data = self.experiment.data
        if data.heldout is not None:
            self._check_heldout(data.heldout)
        if data.tokenizer is not None:
            read_tokenizer(data.tokenizer, self.text)

    def prepare(self, shards: CheckedShards) -> None:
        """Train the tokenizer if none is given or kept beside the shards."""
        del shards
        _ = self.tokenizer

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Tokenizer of the run. It is trained if need be.

        Raises:
            UserError: it is missing, damaged, does not fit the model, or is not that of the run's checkpoints.
        """
        data = self.experiment.data
        tokenizer = open_tokenizer(data.path, Manifest.read(data.path), self.text, data.tokenizer)
        self._check_same(tokenizer)
        return tokenizer

    def _check_same(self, tokenizer: Tokenizer) -> None:
        """Check that a tokenizer is that of the run's newest checkpoint, if there is one."""
        checkpoint = store.newest(RunPaths(self.experiment.run_dir).checkpoints)
        if checkpoint is None:
            return
        weights = checkpoint / store.WEIGHTS_FOLDER
        try:
            trained = cast(CausalFusionConfig, load_config(weights)).text
        except (OSError, ValueError):  # damaged: it is set aside when the run goes on
            return
        if trained is not None and trained.tokenizer_sha256 not in (None, tokenizer.digest):
            raise UserError(
                f"the run's checkpoints were trained with another tokenizer: its SHA-256 is "
                f"{str(trained.tokenizer_sha256)[:12]}…, that of this one {tokenizer.digest[:12]}…\n"
                f"  set data.tokenizer={weights}, or name=… to start another run"
            )

    def _check_heldout(self, folder: Path) -> None:
        """Check the held-out shards, unless they are written together with those of training."""
        data = self.experiment.data
        if data.prepare == "captions" and not folder.exists() and folder == held_out_folder(data.path):
            return
        try:
            heldout = open_shards(folder, hashes=False).usable
        except UserError as error:
            raise UserError(f"data.heldout: {error}") from error
        check_model_fits(heldout, self.experiment.model, folder)
        if not heldout.captions:
            raise UserError(
                f"data.heldout: the shards in {folder} have no captions\n"
                f"  set data.heldout to shards that have them, or leave it out"
            )
        check_captions(folder, heldout)

    def transform(self) -> DrawCaptions:
        """Return the function that draws a caption of each row, and tokenizes it."""
        return DrawCaptions(self.tokenizer, self.text.max_tokens, self.experiment.seed)

    @staticmethod
    def collate(columns: Columns, first_sample: int) -> TextImageBatch:
        """Make one worker's batch of its rows."""
        return TextImageBatch(
            samples=range(first_sample, first_sample + len(columns["row_id"])),
            latents=torch.from_numpy(columns[LATENT].astype(np.float32)),
            tokens=torch.from_numpy(columns[TOKENS].astype(np.int64)),
            lengths=torch.from_numpy(columns[LENGTHS].astype(np.int64)),
            cut=torch.from_numpy(columns[CUT].astype(np.float32)),
        )

    def example_batch(self, rows: int) -> TextImageBatch:
        """Return a batch of noise and of texts of the largest length."""
        model, length = self.model_config, self.text.max_tokens
        generator = torch.Generator().manual_seed(0)
        return TextImageBatch(
            samples=range(rows),
            latents=torch.randn(rows, model.in_channels, model.input_size, model.input_size, generator=generator),
            tokens=torch.randint(self.text.vocabulary, (rows, length), generator=generator),
            lengths=torch.full((rows,), length),
            cut=torch.zeros(rows),
        )

    def build_model(self) -> CausalFusion:
        """Return a model of the configured kind and size."""
        return cast(CausalFusion, build_model(self.model_config))

    def describe_model(self) -> str:
        """Return width, depth and heads, the vocabulary, and the tokens of a training sequence."""
        model, text = self.model_config, self.text
        longest, shortest = longest_sequence(self.experiment), shortest_sequence(self.experiment)
        span = str(longest) if longest == shortest else f"{shortest} to {longest}"
        tied = "tied" if text.tied else "untied"
        return (
            f"width {model.hidden_size}, {model.depth} blocks, {model.num_heads} heads; vocabulary of "
            f"{text.vocabulary:,} tokens, {tied}\n"
            f"{model.num_tokens} image tokens, up to {text.max_tokens} text tokens; training sequences of {span} "
            f"tokens"
        )

    def flops(self) -> float:
        """Return the FLOPs of one image that the mask shows, on average over AR splits and kinds of samples."""
        return training_flops(self.model_config, self.experiment.objective, attention="visible", skip_unread=True)

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
        return activation_bytes(self.experiment, rows, precision) + logits

    def objective(self, model: nn.Module) -> TextImageTraining:
        """Return the losses of images and of text."""
        return TextImageTraining(cast(CausalFusion, model), self.experiment)

    def save_weights(self, folder: Path, weights: dict[str, Tensor]) -> None:
        """Write weights with the model's configuration, its noise process and its tokenizer."""
        save_weights(folder, self.model_config, weights, self.experiment.diffusion, tokenizer=self.tokenizer)

    def hooks(self, context: TaskContext) -> Sequence[Hook]:
        """Return the pictures of both directions: prompts with their samples, and images with their captions."""
        experiment = self.experiment
        heldout = self._read_heldout(max(_GRID_PROMPTS, _GRID_CAPTIONS), context.manifest)
        prompts = [texts[0] for texts in heldout.captions[:_GRID_PROMPTS] for _ in range(_GRID_SAMPLES)]
        shown = heldout.latents[:_GRID_CAPTIONS]

        def picture(latents: Tensor) -> Any:
            captions = self._captions(shown, context, CaptionConfig(), together=False)
            return stacked([prompt_grid(prompts[::_GRID_SAMPLES], latents), caption_grid(shown, captions)])

        return [
            SampleGridHook(
                experiment.train.sample_every_images,
                self._sampler(context),
                self._request(prompts, context.bf16),
                picture,
                RunPaths(experiment.run_dir).samples,
                context.tracker,
                context.control,
                context.spent,
            )
        ]

    def end(self, loop: TrainLoop, context: TaskContext) -> dict[str, Tensor]:
        """Draw images from held-out captions, and describe held-out images, with the EMA weights."""
        experiment, total = self.experiment, self.experiment.train.total_images
        sampling, evaluation = experiment.sampling, experiment.evaluation
        sampler = self._sampler(context)
        sampler.load_state_dict(loop.averages.full_state())

        def alive() -> None:
            context.control.mark("final samples", total)

        alive()
        heldout = self._read_heldout(max(evaluation.num_samples, evaluation.num_captions), context.manifest)
        request = self._request(heldout.prompts(evaluation.num_samples), context.bf16)
        final = {"latents": generate_together(sampler, request, alive)}
        for scale in evaluation.guidance_scales:
            other = dataclasses.replace(request, sampling=dataclasses.replace(sampling, guidance_scale=scale))
            final[f"latents_w{scale:g}"] = generate_together(sampler, other, alive)
        shown = heldout.latents[: evaluation.num_captions]
        final["captions"] = _packed(self._captions(shown, context, CaptionConfig(), alive=alive))
        if evaluation.beam > 1:
            beam = CaptionConfig(beam=evaluation.beam)
            final[f"captions_beam{evaluation.beam}"] = _packed(self._captions(shown, context, beam, alive=alive))
        return final

    def evaluate(self, final: dict[str, Tensor], manifest: Manifest, tracker: Tracker) -> dict[str, Any]:
        """Score both directions and draw them.

        Returns:
            The scores, `num_samples`, `num_captions`, `heldout_digest` and `grid_path`. Names of scores at other
            guidance scales, or of a beam search, end with them. Those that end with `_best` are of the scale with
            the best class accuracy, `t2i_guidance_best`. Only samples of the bundled digits have scores.
        """
        experiment, evaluation = self.experiment, self.experiment.evaluation
        if lost := int((~final["latents"].isfinite()).flatten(1).any(dim=1).sum()):
            count = len(final["latents"])
            logger.warning(f"{lost} of {count} samples hold NaN or infinity, and are scored as black pixels")
        folder = experiment.data.heldout
        heldout_manifest = manifest if folder is None else Manifest.read(folder)
        heldout = self._read_heldout(max(evaluation.num_samples, evaluation.num_captions), manifest)
        scorer = TextImageScores(manifest, experiment.data.path, heldout, heldout_manifest)
        captions = _unpacked(final["captions"])
        scores: dict[str, Any] = dict(scorer.captions(captions)) if evaluation.score else {}
        if evaluation.score and evaluation.beam > 1:
            beam = f"_beam{evaluation.beam}"
            scores |= {
                f"{name}{beam}": v for name, v in scorer.captions(_unpacked(final[f"captions{beam}"])).items()
            }
        prompts, classifier_sha256 = heldout.prompts(evaluation.num_samples), None
        if self._is_scored(manifest):
            sample_scorer = SampleScorer(open_classifier(experiment.data.path, manifest))
            classifier_sha256 = sample_scorer.classifier.extractor.digest
            scores |= scorer.samples(prompts, final["latents"], sample_scorer)
            for scale in evaluation.guidance_scales:
                others = scorer.samples(prompts, final[f"latents_w{scale:g}"], sample_scorer)
                scores |= {f"{name}_w{scale:g}": value for name, value in others.items()}
            tracker.tags({"classifier.sha256": classifier_sha256})
        best = self._best_scale(scores)
        at_best = "" if best is None else f"_w{best:g}"
        plain = [name for name in scores if name.startswith("t2i_") and "_w" not in name.removeprefix("t2i_width")]
        scores |= {f"{name}_best": scores.get(f"{name}{at_best}") for name in plain}
        if plain:
            scores["t2i_guidance_best"] = experiment.sampling.guidance_scale if best is None else best
        drawn = final[f"latents{at_best}"]
        path = self._save_pictures(prompts, drawn, heldout, captions, tracker)
        tracker.metrics({f"eval/{key}": value for key, value in scores.items() if value is not None}, AS_BARS)
        return {
            **scores,
            CLASSIFIER_KEY: classifier_sha256,
            "num_samples": len(prompts),
            "num_captions": len(captions),
            "heldout_digest": heldout_manifest.digest,
            "grid_path": str(path),
        }

    def scores(self) -> list[str]:
        """Return the scores of both directions that any data may have."""
        if not self.experiment.evaluation.score:
            return []
        names = TextImageScores.names()
        evaluation = self.experiment.evaluation
        beams = [f"{name}_beam{evaluation.beam}" for name in names.captions] if evaluation.beam > 1 else []
        scales = [f"{name}_w{scale:g}" for scale in evaluation.guidance_scales for name in names.samples]
        best = [f"{name}_best" for name in names.samples]
        return [*names.captions, *names.samples, *beams, *scales, *best]

    def scores_on(self, manifest: Manifest) -> list[str]:
        """Return the scores of a run on these shards: those of properties only for the bundled digits."""
        if self._is_scored(manifest):
            return self.scores()
        return [name for name in self.scores() if name.startswith("cider_d_")]

    def classifier_of(self, shards: CheckedShards) -> str | None:
        """Return the hash of the data set's classifier, which is trained if need be. None: without scores."""
        if not self._is_scored(shards.manifest):
            return None
        return open_classifier(shards.folder, shards.usable).extractor.digest

    def show_scores(self, summary: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Return the scores of both directions in two lines for each way of decoding or guidance."""
        return TextImageScores.show(summary)

    def _is_scored(self, manifest: Manifest) -> bool:
        """Return whether samples are scored: the properties of the bundled digits can be measured."""
        return self.experiment.evaluation.score and is_captioned_digits(manifest)

    def _read_heldout(self, rows: int, manifest: Manifest) -> CaptionedRows:
        """Return the first rows of the held-out shards, or without such of those of training, in `manifest`."""
        folder = self.experiment.data.heldout
        if folder is None:
            return read_captioned_rows(self.experiment.data.path, manifest, rows)
        return read_captioned_rows(folder, Manifest.read(folder), rows)

    def _request(self, prompts: Sequence[str], bf16: bool) -> Request:
        experiment = self.experiment
        encoded = self.tokenizer.encode_rows(prompts, self.text.max_tokens)
        tokens, lengths = (torch.from_numpy(part.astype(np.int64)) for part in (encoded.tokens, encoded.lengths))
        return Request(
            labels=Prompts(tokens, lengths),
            sampling=experiment.sampling,
            diffusion=experiment.diffusion,
            seed=experiment.seed,
            bf16=bf16,
            batch_size=experiment.evaluation.batch_size,
        )

    def _captions(
        self,
        latents: Tensor,
        context: TaskContext,
        config: CaptionConfig,
        *,
        alive: Callable[[], None] = lambda: None,
        together: bool = True,
    ) -> list[str]:
        options: dict[str, Any] = {
            "seed": self.experiment.seed,
            "batch_size": self.experiment.evaluation.batch_size,
            "bf16": context.bf16,
            "alive": alive,
        }
        sampler = self._sampler(context)
        if together:
            return describe_together(sampler, latents, self.tokenizer, config, **options)
        return describe(sampler, latents, self.tokenizer, config, **options).texts

    def _best_scale(self, scores: Mapping[str, Any]) -> float | None:
        """Return the guidance scale with the best class accuracy. None: that of sampling, or no scores."""
        scales = self.experiment.evaluation.guidance_scales

        def value(scale: float) -> float:
            return scores.get(f"t2i_class_w{scale:g}") or 0.0

        best = max(scales, key=value, default=None)
        return best if best is not None and value(best) > (scores.get("t2i_class") or 0.0) else None

    def _save_pictures(
        self,
        prompts: Sequence[str],
        latents: Tensor,
        heldout: CaptionedRows,
        captions: Sequence[str],
        tracker: Tracker,
    ) -> Path:
        """Draw both directions, and record the picture."""
        shown = min(_GRID_PROMPTS, len(prompts))
        grid = stacked(
            [
                prompt_grid(prompts[:shown], latents[:shown]),
                caption_grid(heldout.latents[:_GRID_CAPTIONS], captions[:_GRID_CAPTIONS]),
            ]
        )
        path = RunPaths(self.experiment.run_dir).samples / "final.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        grid.save(path)
        tracker.image("samples/final", grid, self.experiment.train.total_images)
        tracker.artifact(path, SAMPLES_FOLDER)
        return path

    def _sampler(self, context: TaskContext) -> CausalFusion:
        """Return the model that samples and captions are made with, which takes the averages' weights."""
        if self._sampling_model is None:
            self._sampling_model = self.build_model().to(context.device).eval()
        return self._sampling_model


class TextImageTraining:
    """The objective of text and images, bound to a model."""

    def __init__(self, model: CausalFusion, experiment: Experiment) -> None:
        self.experiment = experiment
        self.objective = TextImageObjective(model, experiment.objective, experiment.diffusion)

    def step(self, batch: TextImageBatch, number: int) -> TextImageStep:
        """Draw the random numbers of a step, and count its target tokens over all ranks."""
        experiment, objective = self.experiment, self.objective
        drawn = draw(
            objective.model.config,
            experiment.objective,
            experiment.diffusion,
            seed=experiment.seed,
            step=number,
            samples=batch.samples,
        )
        texts = Texts(batch.tokens, batch.lengths, text_last(batch.samples, objective.text.share))
        counts = torch.tensor([texts.targets, len(batch)], dtype=torch.float64, device=objective.model.device)
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(counts)
        return TextImageStep(self, batch, texts, drawn, targets_per_row=counts[0].clamp(min=1) / counts[1])


@dataclass(frozen=True)
class TextImageStep:
    """One optimizer step on a batch of latents and captions."""

    bound: TextImageTraining
    batch: TextImageBatch
    texts: Texts
    drawn: Draws
    targets_per_row: Tensor
    """Target tokens of the whole step, over all ranks, for each of its rows."""

    @property
    def rows(self) -> int:
        """Rows of this rank."""
        return len(self.batch)

    @property
    def numbers(self) -> Mapping[str, float]:
        """S, the number of AR steps of the step."""
        return {"ar_steps": len(self.drawn.sizes)}

    def loss(self, engine: Any, rows: slice, device: torch.device) -> PartLoss:
        """Return the loss of some rows, the error of their images and the entropy of their texts."""
        dtype = engine.module.dtype

        def forward(noised: Tensor, clean: Tensor, *others: Any) -> Any:
            # The objective computes in fp32; weights of 16 bits want their inputs in their own type.
            return engine(noised.to(dtype), clean.to(dtype), *others)

        latents = self.batch.latents[rows].to(device, non_blocking=True)
        # The part's share of all targets: the mean over parts and ranks is then the mean over tokens.
        targets = self.targets_per_row.to(device, torch.float32) * len(latents)
        loss = self.bound.objective(forward, latents, self.texts[rows], self.drawn.part(rows), targets)
        values = {"mse": loss.mse, "text_loss": loss.text, "captions_cut": self.batch.cut[rows].mean().to(device)}
        return PartLoss(loss.weighted, values)

    @property
    def cost(self) -> Callable[[], StepCost]:
        """Function that returns FLOPs and tokens of one image, exact for the AR split of this step."""
        lengths = self.texts.lengths.double().mean()
        return partial(cost_of, self.bound.experiment, self.drawn.sizes, round(float(lengths)))


def cost_of(experiment: Experiment, sizes: list[int], text: int) -> StepCost:
    """Return FLOPs and tokens of one image, averaged over both kinds, with texts of `text` tokens."""
    model, objective = cast(CausalFusionConfig, experiment.model), experiment.objective
    assert objective.text is not None
    copies, share = objective.time_copies, objective.text.share
    flops = [
        forward_flops(
            model,
            sizes,
            text_before=before,
            text_after=after,
            time_copies=copies,
            attention="visible",
            skip_unread=True,
        )
        for before, after in ((text, 0), (0, text))
    ]
    first = text + model.num_tokens - sizes[-1] + copies * model.num_tokens
    last = text + model.num_tokens * (1 if model.architecture == "transfusion" else 1 + copies)
    return StepCost(
        flops=3 * ((1 - share) * flops[0] + share * flops[1]), tokens=round((1 - share) * first + share * last)
    )


def _packed(texts: Sequence[str]) -> Tensor:
    """Return texts as bytes of JSON, which a file of tensors can hold."""
    return torch.frombuffer(bytearray(json.dumps(list(texts)).encode()), dtype=torch.uint8)


def _unpacked(packed: Tensor) -> list[str]:
    texts: list[str] = json.loads(packed.numpy().tobytes())
    return texts
