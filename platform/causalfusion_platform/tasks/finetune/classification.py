"""Classification: a trained model and a linear head learn the labels of images (Table 12, column top-1 of 6b)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from causalfusion.representation import Classifier, ClassifierConfig, layer_groups, save_finetuned

from ...config.errors import UserError
from ...config.schema import Experiment
from ...data.augment.mixing import MixDraw, draw_mixing, mix, soft_targets
from ...data.manifest import Manifest
from ...data.read import LATENT, Batch, Transform, read_all, to_batch
from ...data.validate import CheckedShards
from ...tracking.tracker import AS_BARS, Tracker
from ...train.loop import TrainLoop
from ...train.objective import PartLoss, StepCost
from ...train.optimizer import ParameterGroup
from ..task import TaskContext
from .base import Finetune, validation_folders
from .images import open_images
from .validation import OneShard, in_order, own_parts

_MOST = 5
"""Classes of a prediction that are kept, for top-5 accuracy."""


class Classification(Finetune):
    """Learn the class of an image: latents and labels in, soft cross-entropy, top-1 and top-5 at the end."""

    fields = ("label", LATENT)
    has_classes = True
    not_read: ClassVar = {
        "layer": "a classifier runs all blocks",
        "backbone_lr_scale": "layer_decay sets the rate of each block (Table 12)",
        "caption_head": "a classifier has a linear head",
    }
    collate = staticmethod(to_batch)

    def __init__(self, experiment: Experiment) -> None:
        super().__init__(experiment)
        self.images = open_images(experiment)

    @property
    def depth(self) -> int:
        """Blocks of the model that are run: all."""
        return self.experiment.model.depth

    @cached_property
    def num_classes(self) -> int:
        """Classes of the shards. Those of the model before the shards are written, for a plan."""
        try:
            return len(Manifest.read(self.experiment.data.path).class_names)
        except UserError:
            return self.experiment.model.num_classes

    @property
    def finetuned_config(self) -> ClassifierConfig:
        """The classifier, with an output for each class of the shards."""
        finetune = self.finetune
        return ClassifierConfig(
            backbone=self.experiment.model,
            num_classes=self.num_classes,
            drop_path=0.0 if finetune.freeze else finetune.drop_path,
            condition=finetune.condition,
        )

    def check(self, shards: CheckedShards) -> None:
        """Check shards, weights and augmentation.

        Raises:
            UserError: the first fault found.
        """
        super().check(shards)
        try:
            self.finetune.augment.check_rows(self.experiment.train.rows_at_once)
        except ValueError as error:
            raise UserError(f"finetune.augment: {error}") from error
        self.images.check(shards.manifest)

    def transform(self) -> Transform | None:
        """Return the augmentation of rows where they are read."""
        return self.images.transform()

    def parameter_groups(self, model: nn.Module) -> list[ParameterGroup]:
        """Return MAE's groups: a rate for each layer, and no weight decay of vectors and positions."""
        optim, decay = self.experiment.optim, self.finetune.layer_decay
        groups = layer_groups(cast(Classifier, model), decay, optim.weight_decay)
        return [ParameterGroup(group.parameters, group.scale, group.weight_decay) for group in groups]

    def objective(self, model: nn.Module) -> ClassificationObjective:
        """Return the soft cross-entropy of mixed images."""
        return ClassificationObjective(self, cast(Classifier, model))

    def save_weights(self, folder: Path, weights: dict[str, Tensor]) -> None:
        """Write weights with the classifier's configuration and the names of its classes."""
        names = Manifest.read(self.experiment.data.path).class_names
        save_finetuned(folder, self.finetuned_config, weights, class_names=names)

    def end(self, loop: TrainLoop, context: TaskContext) -> dict[str, Tensor]:
        """Classify the held-out images: the most probable classes and the label of each."""
        model = cast(Classifier, self.trained(loop, context))
        final = {}
        for ending, folder in validation_folders(self.experiment).items():
            rows = self._classify(model, folder, context)
            final[f"classes{ending}"] = torch.tensor([classes for classes, _ in rows])
            final[f"labels{ending}"] = torch.tensor([label for _, label in rows])
        return final | self.start_tensors()

    def evaluate(self, final: dict[str, Tensor], manifest: Manifest, tracker: Tracker) -> dict[str, Any]:
        """Return top-1 and top-5 accuracy, with standard errors and the number of images, and where it started."""
        del manifest
        scores: dict[str, Any] = {}
        for ending in validation_folders(self.experiment):
            scores |= accuracies(final[f"classes{ending}"], final[f"labels{ending}"], ending)
        tracker.metrics({f"eval/{key}": float(value) for key, value in scores.items()}, AS_BARS)
        return scores | self.start_record(final)

    def scores(self) -> list[str]:
        """Return the accuracies on each held-out folder."""
        return [f"{name}{ending}" for ending in validation_folders(self.experiment) for name in ("top1", "top5")]

    def show_scores(self, summary: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Return the accuracies on each held-out folder, with the number of its images."""
        return [
            (
                f"top-1, top-5{ending.replace('_', ', ')}",
                f"{summary[f'top1{ending}']:.4f} ± {summary[f'top1_stderr{ending}']:.4f}, "
                f"{summary[f'top5{ending}']:.4f} of {summary[f'num_images{ending}']:,} images",
            )
            for ending in validation_folders(self.experiment)
        ]

    def _classify(self, model: Classifier, folder: Path, context: TaskContext) -> list[tuple[list[int], int]]:
        manifest = Manifest.read(folder)
        most = min(_MOST, self.num_classes)
        shard: OneShard[Batch] = OneShard(partial(read_all, folder))
        own: list[list[tuple[list[int], int]]] = []
        for alone, rows in own_parts(manifest, self.experiment.evaluation.batch_size):
            batch, part = shard.rows(alone), slice(rows.start, rows.stop)
            images = self.images.evaluation(batch.latents[part]).to(context.device)
            with torch.no_grad(), torch.autocast(context.device.type, torch.bfloat16, enabled=context.bf16):
                logits = model(self.images.encode(images, context.device))
            classes = logits.float().topk(most).indices.tolist()
            own.append(list(zip(classes, batch.labels[part].tolist(), strict=True)))
            context.control.mark("validation", self.experiment.train.total_images)
        return in_order(own)


def accuracies(classes: Tensor, labels: Tensor, ending: str = "") -> dict[str, Any]:
    """Return top-1 and top-5 accuracy, the standard error of top-1, and the number of images.

    Args:
        classes: (N, k ≤ 5) most probable classes, the best first.
        labels: (N,)
        ending: of each name.
    """
    right = classes == labels[:, None]
    top1, top5, count = right[:, 0].double().mean().item(), right.any(dim=1).double().mean().item(), len(labels)
    return {
        f"top1{ending}": top1,
        f"top1_stderr{ending}": math.sqrt(top1 * (1 - top1) / count),
        f"top5{ending}": top5,
        f"num_images{ending}": count,
    }


class ClassificationObjective:
    """Soft cross-entropy of mixed images."""

    def __init__(self, task: Classification, model: Classifier) -> None:
        self.task, self.model = task, model

    def step(self, batch: Batch, number: int) -> ClassificationStep:
        """Draw drop path of each row, and how the step mixes its rows."""
        experiment, drop_path = self.task.experiment, self.model.config.drop_path
        height, width = batch.latents.shape[-2:]
        assert experiment.finetune is not None
        return ClassificationStep(
            self,
            batch,
            self.model.draw(experiment.seed, batch.samples) if drop_path else None,
            draw_mixing(experiment.finetune.augment, experiment.seed, number, height, width),
        )


@dataclass(frozen=True)
class ImagesAndLabels:
    """Inputs of one micro-batch."""

    images: Tensor
    """(B, channels, height, width) images or latents."""
    labels: Tensor
    """(B,)"""
    drops: Tensor | None
    """(B, K) uniform numbers. None: no branch is dropped."""


@dataclass(frozen=True)
class ClassificationStep:
    """One optimizer step on a batch of images and labels."""

    bound: ClassificationObjective
    batch: Batch
    drop_path: Tensor | None
    """(B, K) uniform numbers. None: no branch is dropped."""
    mixing: MixDraw | None

    @property
    def rows(self) -> int:
        """Rows of this rank."""
        return len(self.batch)

    @property
    def numbers(self) -> Mapping[str, float]:
        """λ of mixup or CutMix, the weight of a row's own label."""
        return {"mixing_weight": 1.0 if self.mixing is None else self.mixing.weight}

    @property
    def totals(self) -> Tensor | None:
        """No sums over ranks."""
        return None

    def part(self, rows: slice) -> ImagesAndLabels:
        """Return images and labels of some rows, with the draws of their drop path."""
        drops = None if self.drop_path is None else self.drop_path[rows]
        return ImagesAndLabels(self.batch.latents[rows], self.batch.labels[rows], drops)

    def loss(self, engine: Any, part: ImagesAndLabels, totals: Tensor | None) -> PartLoss:
        """Return the cross-entropy of some rows, and the share whose heaviest label is predicted."""
        del totals
        task, finetune = self.bound.task, self.bound.task.finetune
        num_classes = self.bound.model.config.num_classes
        targets = soft_targets(part.labels, num_classes, finetune.augment.label_smoothing)
        images, targets = mix(part.images, targets, self.mixing)
        logits = engine(task.images.encode(images, images.device), part.drops).float()
        loss = -(targets * logits.log_softmax(dim=-1)).sum(dim=-1).mean()
        right = (logits.argmax(dim=-1) == targets.argmax(dim=-1)).float().mean()
        return PartLoss(loss, {"accuracy": right})

    @property
    def cost(self) -> Callable[[], StepCost]:
        """Function that returns FLOPs and tokens of one image."""
        cost = self.bound.task.cost
        return lambda: cost
