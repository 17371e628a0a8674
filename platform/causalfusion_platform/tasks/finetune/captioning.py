"""Captioning: a trained model's features and a caption head learn to describe images (Table 13, CIDEr of 6b)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from causalfusion import CaptionConfig, TextConfig
from causalfusion.representation import Captioner, CaptionerConfig, head_groups, save_finetuned
from causalfusion.representation.captioner import HeadDraws
from causalfusion.text_objective import next_token_loss

from ...config.errors import UserError
from ...config.schema import Experiment
from ...data.caption_tokens import CAPTIONS, check_captions
from ...data.captioned_rows import CaptionedRows, read_captioned_rows
from ...data.manifest import Manifest
from ...data.read import LATENT
from ...data.validate import CheckedShards
from ...evaluation.metrics.bleu import bleu_4
from ...evaluation.metrics.caption_tokenizers import WordTokenizer
from ...evaluation.metrics.cider import cider_d
from ...sampling.describe import describe
from ...tracking.tracker import AS_BARS, Tracker
from ...train.loop import TrainLoop
from ...train.objective import PartLoss, StepCost
from ...train.optimizer import ParameterGroup
from ..captions import CaptionTask, count_targets, targets_of
from ..final import packed, unpacked
from ..task import TaskContext
from ..text_image.training import TextImageBatch, to_batch
from .base import Finetune, validation_folders
from .validation import OneShard, in_order, own_parts


class Captioning(CaptionTask, Finetune):
    """Describe images: latents and captions in, next-token loss, CIDEr-D and BLEU-4 at the end."""

    fields = (CAPTIONS, LATENT)
    has_classes = False
    not_read: ClassVar = {
        "augment": "captions are learned without augmentation (Table 13)",
        "drop_path": "only a classifier has it (Table 12)",
        "layer_decay": "only a classifier has it (Table 12)",
        "vae": "captions are learned from latents",
    }
    collate = staticmethod(to_batch)

    def __init__(self, experiment: Experiment) -> None:
        super().__init__(experiment)
        if (layer := self.finetune.layer) is not None and layer > experiment.model.depth:
            raise UserError(
                f"finetune.layer={layer}, but the model has {experiment.model.depth} blocks\n"
                f"  allowed: 1 to {experiment.model.depth}"
            )

    @property
    def depth(self) -> int:
        """Blocks of the model that are run."""
        return self.finetune.layer or self.experiment.model.depth

    @property
    def text(self) -> TextConfig:
        """Size of the captions."""
        head = self.finetune.caption_head
        return TextConfig(vocabulary=head.vocabulary, max_tokens=head.max_tokens)

    @property
    def finetuned_config(self) -> CaptionerConfig:
        """The captioner: the model up to a block, and the head."""
        finetune, head = self.finetune, self.finetune.caption_head
        return CaptionerConfig(
            backbone=self.experiment.model,
            text=self.text,
            layer=self.depth,
            width=head.width,
            num_heads=head.num_heads,
            encoder_depth=head.encoder_depth,
            decoder_depth=head.decoder_depth,
            dropout=head.dropout,
            condition=finetune.condition,
        )

    def check(self, shards: CheckedShards) -> None:
        """Check shards, weights, captions and the tokenizer.

        Raises:
            UserError: the first fault found.
        """
        super().check(shards)
        check_captions(self.experiment.data.path, shards.usable)
        for folder in validation_folders(self.experiment).values():
            check_captions(folder, Manifest.read(folder))

    def parameter_groups(self, model: nn.Module) -> list[ParameterGroup]:
        """Return the head at the learning rate, and the model at its share of it (Table 13)."""
        scale, decay = self.finetune.backbone_lr_scale, self.experiment.optim.weight_decay
        groups = head_groups(cast(Captioner, model), scale, decay)
        return [ParameterGroup(group.parameters, group.scale, group.weight_decay) for group in groups]

    def objective(self, model: nn.Module) -> CaptioningObjective:
        """Return the next-token loss."""
        return CaptioningObjective(self, cast(Captioner, model))

    def save_weights(self, folder: Path, weights: dict[str, Tensor]) -> None:
        """Write weights with the captioner's configuration and its tokenizer."""
        save_finetuned(folder, self.finetuned_config, weights, tokenizer=self.tokenizer)

    def end(self, loop: TrainLoop, context: TaskContext) -> dict[str, Tensor]:
        """Describe the held-out images greedily, and by a beam search if there is one."""
        model = cast(Captioner, self.trained(loop, context))
        final = {}
        for ending, folder in validation_folders(self.experiment).items():
            for way, config in self._ways().items():
                texts = self._describe(model, folder, config, context)
                final[f"captions{way}{ending}"] = packed(texts)
        return final | self.start_tensors()

    def evaluate(self, final: dict[str, Tensor], manifest: Manifest, tracker: Tracker) -> dict[str, Any]:
        """Return CIDEr-D and BLEU-4 of each way of decoding, and where the fine-tune started."""
        del manifest
        scores: dict[str, Any] = {}
        for ending, folder in validation_folders(self.experiment).items():
            references = _read_rows(folder, Manifest.read(folder)).captions
            for way in self._ways():
                texts = unpacked(final[f"captions{way}{ending}"])
                scores |= {f"{name}{way}{ending}": value for name, value in _scores(texts, references).items()}
            scores[f"num_images{ending}"] = len(references)
        tracker.metrics({f"eval/{key}": float(value) for key, value in scores.items()}, AS_BARS)
        return scores | self.start_record(final)

    def scores(self) -> list[str]:
        """Return the scores of each way of decoding on each held-out folder."""
        return [
            f"{name}{way}{ending}"
            for ending in validation_folders(self.experiment)
            for way in self._ways()
            for name in _score_names()
        ]

    def _ways(self) -> dict[str, CaptionConfig]:
        """Return the ways of decoding by the ending of their scores' names."""
        beam = self.experiment.evaluation.beam
        return {"": CaptionConfig()} | ({f"_beam{beam}": CaptionConfig(beam=beam)} if beam > 1 else {})

    def _describe(self, model: Captioner, folder: Path, config: CaptionConfig, context: TaskContext) -> list[str]:
        shard: OneShard[CaptionedRows] = OneShard(partial(_read_rows, folder))
        own = []
        for alone, rows in own_parts(Manifest.read(folder), self.experiment.evaluation.batch_size):
            latents = shard.rows(alone).latents[rows.start : rows.stop]
            found = describe(model, latents, self.tokenizer, config, batch_size=len(rows), bf16=context.bf16)
            own.append(found.texts)
            context.control.mark("validation", self.experiment.train.total_images)
        return in_order(own)


def _read_rows(folder: Path, manifest: Manifest) -> CaptionedRows:
    return read_captioned_rows(folder, manifest, manifest.rows)


def _score_names() -> tuple[str, str]:
    words = WordTokenizer()
    return words.metric, words.bleu


def _scores(texts: list[str], references: list[list[str]]) -> dict[str, float]:
    words = WordTokenizer()
    return {
        words.metric: cider_d(texts, references, words).score,
        words.bleu: bleu_4(texts, references, words),
    }


class CaptioningObjective:
    """Next-token loss of captions, averaged over the target tokens of the whole step."""

    def __init__(self, task: Captioning, model: Captioner) -> None:
        self.task, self.model = task, model

    def step(self, batch: TextImageBatch, number: int) -> CaptioningStep:
        """Return the step. Dropout is drawn by the position of each row."""
        del number
        return CaptioningStep(self.task, self.model, batch)


@dataclass(frozen=True)
class LatentsAndCaptions:
    """Inputs of one micro-batch."""

    latents: Tensor
    """(B, channels, height, width)"""
    tokens: Tensor
    """(B, T)"""
    lengths: Tensor
    """(B,)"""
    drawn: HeadDraws
    cut: Tensor
    """Share of the captions that are longer than the model takes."""


@dataclass(frozen=True)
class CaptioningStep:
    """One optimizer step on a batch of images and captions."""

    task: Captioning
    model: Captioner
    batch: TextImageBatch

    @property
    def rows(self) -> int:
        """Number of rows of this rank."""
        return len(self.batch)

    @property
    def numbers(self) -> Mapping[str, float]:
        """No numbers but the loss."""
        return {}

    @property
    def totals(self) -> Tensor:
        """Target tokens and rows of this rank."""
        return count_targets(int((self.batch.lengths - 1).sum()), len(self.batch))

    def part(self, rows: slice) -> LatentsAndCaptions:
        """Return images and captions of some rows, with the draws of their dropout."""
        batch = self.batch
        drawn = self.model.draw(self.task.experiment.seed, batch.samples[rows])
        cut = batch.cut[rows].mean()
        return LatentsAndCaptions(batch.latents[rows], batch.tokens[rows], batch.lengths[rows], drawn, cut)

    def loss(self, engine: Any, part: LatentsAndCaptions, totals: Tensor | None) -> PartLoss:
        """Return the loss of some rows, and the share of their tokens that are predicted."""
        tokens, lengths = part.tokens, part.lengths
        logits = engine(part.latents, tokens, part.drawn)
        loss = next_token_loss(logits, tokens, lengths) / targets_of(totals, len(tokens))
        there = torch.arange(1, tokens.shape[1], device=tokens.device) < lengths[:, None]
        right = ((logits[:, :-1].argmax(dim=-1) == tokens[:, 1:]) & there).sum() / there.sum().clamp(min=1)
        return PartLoss(loss, {"token_accuracy": right, "captions_cut": part.cut})

    @property
    def cost(self) -> Callable[[], StepCost]:
        """Function that returns FLOPs and tokens of one image."""
        cost = self.task.cost
        return lambda: cost
