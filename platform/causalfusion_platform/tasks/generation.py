"""Base of the tasks of image generation: a model of latents, samples of its averages, and draws of a step."""

from __future__ import annotations

import dataclasses
import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sized
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from causalfusion import Draws, Model, build_model
from causalfusion.flops import training_flops
from causalfusion.lengths import lengths

from ..config.errors import UserError
from ..config.schema import Experiment
from ..data.manifest import Manifest
from ..data.validate import CheckedShards
from ..evaluation.classifier.folder import open_classifier
from ..storage.run_layout import SAMPLES_FOLDER, RunPaths
from ..tracking.tracker import Tracker
from ..train.engine import plain_forward
from ..train.loop import Hook, TrainLoop
from ..train.memory import ModelSize
from ..train.warm_up import warm_up
from .activations import activation_bytes, longest_sequence, shortest_sequence
from .probes import ProbeHook
from .task import Task, TaskContext

logger = logging.getLogger(__name__)


class GenerationTask(Task):
    """Train a model that generates latents, and draw samples with the weights of its averages."""

    can_be_probed = True

    def __init__(self, experiment: Experiment) -> None:
        super().__init__(experiment)
        if experiment.finetune is not None:
            raise UserError(
                f"finetune is not read by task={experiment.task}\n"
                f"  leave the section out, or set task=classification or task=captioning"
            )
        self._sampling_model: Model | None = None

    @abstractmethod
    def is_scored(self, manifest: Manifest) -> bool:
        """Return whether samples of a run on these shards are scored."""

    def build_model(self) -> Model:
        """Return a model of the configured kind and size."""
        return build_model(self.experiment.model)

    def flops(self) -> float:
        """Return the FLOPs of one image that the mask shows, on average over AR splits and kinds of samples."""
        return training_flops(
            self.experiment.model, self.experiment.objective, attention="visible", skip_unread=True
        )

    @cached_property
    def size(self) -> ModelSize:
        """Size of the model, of which a second one draws samples."""
        return dataclasses.replace(super().size, samples=True)

    def activation_bytes(self, rows: int, precision: str) -> float:
        """Estimate the activations of the longest sequence."""
        return activation_bytes(self.experiment, rows, precision)

    def lengths(self, device: torch.device) -> int | None:
        """Return the number of lengths. The kinds of samples of text and images have rows of their own."""
        model, objective = self.experiment.model, self.experiment.objective
        return None if objective.text else len(lengths(model, objective, device.type))

    def warm_up(self, engine: Any, device: torch.device, alive: Callable[[], None]) -> int:
        """Run the model on a micro-batch of zeros of each length, or of a choice of many lengths."""
        rows = engine.train_micro_batch_size_per_gpu()
        model, objective = self.experiment.model, self.experiment.objective
        return warm_up(plain_forward(engine), engine.module, model, objective, rows, device, alive)

    def classifier_of(self, shards: CheckedShards) -> str | None:
        """Return the hash of the data set's classifier, which is trained if need be. None: without scores."""
        if not self.is_scored(shards.manifest):
            return None
        return open_classifier(shards.folder, shards.usable).extractor.digest

    def sampler(self, context: TaskContext) -> Model:
        """Return the model that samples are generated with, which takes the averages' weights."""
        if self._sampling_model is None:
            self._sampling_model = self.build_model().to(context.device).eval()
        return self._sampling_model

    def trained_sampler(self, loop: TrainLoop, context: TaskContext) -> Model:
        """Return the model with the averages' weights at the end of training. Ranks call it together."""
        sampler = self.sampler(context)
        sampler.load_state_dict(loop.averages.full_state())
        return sampler

    def probes(self, context: TaskContext) -> list[Hook]:
        """Return the hook that probes the layers of the EMA weights, if the experiment asks for it."""
        every = self.experiment.evaluation.probe_every_images
        return [] if every is None else [ProbeHook(every, self.experiment, self.sampler(context), context)]

    def alive(self, context: TaskContext) -> Callable[[], None]:
        """Return the sign of life to give while final samples are made."""
        total = self.experiment.train.total_images
        return lambda: context.control.mark("final samples", total)

    def sequence_span(self) -> str:
        """Return the tokens of a training sequence, as "24" or "20 to 35"."""
        longest, shortest = longest_sequence(self.experiment), shortest_sequence(self.experiment)
        return str(longest) if longest == shortest else f"{shortest} to {longest}"

    def save_final_picture(self, picture: Image.Image, tracker: Tracker) -> Path:
        """Write the picture of the final samples into the run's folder and to MLflow. Return its path."""
        path = RunPaths(self.experiment.run_dir).samples / "final.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
        tracker.image("samples/final", picture, self.experiment.train.total_images)
        tracker.artifact(path, SAMPLES_FOLDER)
        return path


def warn_of_lost(latents: Tensor) -> None:
    """Log how many samples hold NaN or infinity."""
    if lost := int((~latents.isfinite()).flatten(1).any(dim=1).sum()):
        logger.warning(f"{lost} of {len(latents)} samples hold NaN or infinity, and are scored as black pixels")


class DrawnBatch(Protocol):
    """One optimizer step on this rank's rows, with the draws of `causalfusion.draws`."""

    @property
    def batch(self) -> Sized:
        """Rows of this rank."""

    @property
    def drawn(self) -> Draws:
        """The AR split, orders, times and noise of the step."""


class DrawnStep:
    """The rows and numbers of a step on latents with an AR split."""

    @property
    def rows(self: DrawnBatch) -> int:
        """Rows of this rank."""
        return len(self.batch)

    @property
    def numbers(self: DrawnBatch) -> Mapping[str, float]:
        """S, the number of AR steps of the step."""
        return {"ar_steps": len(self.drawn.sizes)}

    @property
    def totals(self) -> Tensor | None:
        """No sums over ranks."""
        return None


def in_weights_type(engine: Any) -> Callable[..., Any]:
    """Return a forward pass whose latents have the type of the weights. The objective computes in fp32."""
    dtype = engine.module.dtype

    def forward(noised: Tensor, clean: Tensor, *others: Any) -> Any:
        return engine(noised.to(dtype), clean.to(dtype), *others)

    return forward
