"""Base of the fine-tunes: the model that they start from, and their cost."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from safetensors import SafetensorError
from torch import Tensor

from causalfusion import load_weights
from causalfusion.representation.backbone import differing_settings
from causalfusion.representation.features import check_condition
from causalfusion.representation.flops import finetuning_flops
from causalfusion.representation.folder import Finetuned, FinetunedConfig, build_finetuned
from causalfusion.weights.folder import WEIGHTS_FILE, load_config

from ...checkpoint.find import find_weights
from ...config.commands import command
from ...config.errors import UserError
from ...config.finetune import FinetuneConfig
from ...config.schema import Experiment
from ...data.check_validation import check_held_out, check_validation
from ...data.manifest import sha256_of
from ...data.validate import CheckedShards
from ...train.loop import TrainLoop
from ...train.objective import StepCost
from ..activations import plain_activation_bytes
from ..final import packed, unpacked
from ..task import Task, TaskContext

_START_SHA256 = "finetuned_from_sha256"


class Finetune(Task):
    """Train a head on a model, and the model with it unless it is frozen."""

    has_classes: ClassVar[bool]
    """Whether labels are learned, so that training and validation must have the same classes."""
    not_read: ClassVar[Mapping[str, str]]
    """Keys of the section that the task does not read, each with the reason."""

    def __init__(self, experiment: Experiment) -> None:
        super().__init__(experiment)
        if experiment.finetune is None:
            raise UserError(
                f"task={experiment.task} needs the section finetune\n"
                f"  give it, such as finetune.weights=runs/quickstart; or fine-tune by the command: "
                f"causalfusion finetune --help"
            )
        self.finetune: FinetuneConfig = experiment.finetune
        self._start_sha256 = ""
        self._check_read()
        try:
            check_condition(experiment.model, self.finetune.condition)
        except ValueError as error:
            raise UserError(f"finetune.condition: {error}\n  leave it out") from error

    @property
    @abstractmethod
    def finetuned_config(self) -> FinetunedConfig:
        """The model that is trained."""

    @property
    @abstractmethod
    def depth(self) -> int:
        """Blocks of the backbone."""

    def check(self, shards: CheckedShards) -> None:
        """Check the shards of training, validation and test.

        Raises:
            UserError: the first fault found.
        """
        model, data = self.experiment.model, self.experiment.data
        expected = (model.in_channels, model.input_size, model.input_size)
        if self.finetune.augment.mode == "latents" and shards.manifest.shape != expected:
            raise UserError(
                f"the shards in {data.path} hold latents of shape {shards.manifest.shape}, but the model takes "
                f"{expected}\n  set data.path to shards of the autoencoder that the model was trained with"
            )
        check_validation(self.experiment, shards, classes=self.has_classes)
        if self.finetune.test is not None:
            check_held_out(self.experiment, shards, self.finetune.test, "finetune.test", classes=self.has_classes)

    def check_paths(self) -> None:
        """Check the weights that the fine-tune starts from.

        Raises:
            UserError: there are none, or they are of another model.
        """
        if self.finetune.weights is None:
            return
        folder = find_weights(self.finetune.weights).folder
        try:
            found = load_config(folder)
        except (OSError, ValueError) as error:
            raise UserError(
                f"finetune.weights: {error}\n"
                f"  name a run of task=class_to_image or task=text_image, or the folder of its weights"
            ) from error
        if differing := differing_settings(found, self.experiment.model):
            raise UserError(
                f"finetune.weights: the model in {folder} has {'; '.join(differing)}\n"
                f"  set model.… to that of the weights, as this command does: "
                f"{command('finetune', 'classify', self.finetune.weights)}"
            )

    def build_model(self) -> Finetuned:
        """Return the model, with the trained weights in its backbone if it starts from any."""
        model = build_finetuned(self.finetuned_config)
        if self.finetune.weights is not None and not next(model.parameters()).is_meta:
            folder = find_weights(self.finetune.weights).folder
            try:
                model.load_backbone(load_weights(folder))
                self._start_sha256 = sha256_of(folder / WEIGHTS_FILE)
            except (OSError, ValueError, RuntimeError, SafetensorError) as error:
                raise UserError(f"finetune.weights: {error}") from error
        if self.finetune.freeze:
            model.backbone.requires_grad_(False)
        return model

    def describe_model(self) -> str:
        """Return the sizes of the model, and how much of it is trained."""
        model, finetune = self.experiment.model, self.finetune
        start = "initial weights" if finetune.weights is None else f"weights of {finetune.weights}"
        frozen = ", frozen: the head alone is trained" if finetune.freeze else ""
        return (
            f"{model.architecture} of width {model.hidden_size}, {self.depth} of {model.depth} blocks, "
            f"{model.num_tokens} tokens\n{start}{frozen}"
        )

    def flops(self) -> float:
        """Return the FLOPs of training on one image, with its longest caption."""
        return float(finetuning_flops(self.finetuned_config, frozen=self.finetune.freeze))

    def activation_bytes(self, rows: int, precision: str) -> float:
        """Estimate the activations of the blocks. Those of the head are few beside them."""
        depth = 1 if self.finetune.freeze else self.depth
        return plain_activation_bytes(self.experiment, rows, precision, depth)

    def trained(self, loop: TrainLoop, context: TaskContext) -> Finetuned:
        """Return the model at the end of training, for evaluation. Ranks call it together."""
        model = build_finetuned(self.finetuned_config).to(context.device).eval()
        model.load_state_dict(loop.averages.full_state())
        return model

    @property
    def cost(self) -> StepCost:
        """FLOPs and tokens of one row."""
        return StepCost(flops=self.flops(), tokens=self.experiment.model.num_tokens)

    def start_tensors(self) -> dict[str, Tensor]:
        """Return the hash of the weights that `build_model` loaded, beside the tensors of the task's end."""
        return {_START_SHA256: packed([self._start_sha256])}

    def start_record(self, final: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return the part of a summary that says where the fine-tune started.

        Args:
            final: tensors of the task's end.
        """
        weights = self.finetune.weights
        digest = unpacked(final[_START_SHA256])[0] if _START_SHA256 in final else ""
        return {"finetuned_from": None if weights is None else str(weights), _START_SHA256: digest or None}

    def _check_read(self) -> None:
        """Refuse settings that the task would ignore."""
        plain = FinetuneConfig()
        for key, reason in self.not_read.items():
            given = getattr(self.finetune, key)
            if given != getattr(plain, key):
                shown = f"={given}" if isinstance(given, int | float | str | Path) else ""
                raise UserError(
                    f"finetune.{key}{shown} is not read by task={self.experiment.task}: {reason}\n  leave it out"
                )


def validation_folders(experiment: Experiment) -> dict[str, Path]:
    """Return the folders that are measured at the end, by the ending of their scores' names."""
    assert experiment.finetune is not None
    folders = {"": experiment.data.validation, "_test": experiment.finetune.test}
    return {ending: folder for ending, folder in folders.items() if folder is not None}
