"""Base of the tasks that learn captions: their tokenizer, the caption of each row, and their target tokens."""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from causalfusion import CausalFusionConfig, TextConfig
from causalfusion.representation import CaptionerConfig, is_captioner, load_finetuned_config
from causalfusion.text.tokenizer import Tokenizer
from causalfusion.weights.folder import check_tokenizer, load_config

from ..checkpoint.open import open_checkpoints
from ..config.errors import UserError
from ..config.schema import Experiment
from ..data.caption_tokens import DrawCaptions, open_tokenizer
from ..data.manifest import Manifest
from ..data.validate import CheckedShards
from .task import Task


class CaptionTask(Task):
    """Learn captions of images by a tokenizer, which is given or trained on them."""

    @property
    @abstractmethod
    def text(self) -> TextConfig:
        """Sizes of the captions."""

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
        check_same_tokenizer(self.experiment, tokenizer)
        return tokenizer

    def transform(self) -> DrawCaptions:
        """Return the function that draws a caption of each row, and tokenizes it."""
        return DrawCaptions(self.tokenizer, self.text.max_tokens, self.experiment.seed)


def count_targets(targets: int, rows: int) -> Tensor:
    """Return the target tokens and the rows of this rank, (2,) fp64, to be summed over all ranks."""
    return torch.tensor([targets, rows], dtype=torch.float64)


def targets_of(totals: Tensor | None, rows: int) -> Tensor:
    """Return the share of a micro-batch of the target tokens of the whole step, over all ranks: a scalar in fp32.

    Text losses are divided by it. Their mean over micro-batches and ranks is then the mean over tokens.

    Args:
        totals: `count_targets`, summed over all ranks.
        rows: rows of the micro-batch.
    """
    assert totals is not None
    return (totals[0].clamp(min=1) / totals[1]).to(torch.float32) * rows


def check_same_tokenizer(experiment: Experiment, tokenizer: Tokenizer) -> None:
    """Check that a tokenizer is that of the run's newest checkpoint, if there is one.

    Raises:
        UserError: it is another one.
    """
    weights = open_checkpoints(experiment.run_dir, experiment.run_url).newest_config()
    if weights is None:
        return
    try:
        trained = _text_of_weights(weights)
    except (OSError, ValueError):  # damaged: it is set aside when the run goes on
        return
    if trained is None:
        return
    given = experiment.data.tokenizer or f"the tokenizer of the captions in {experiment.data.path}"
    try:
        check_tokenizer(trained, tokenizer, str(given))
    except ValueError as error:
        raise UserError(f"{error}\n  set data.tokenizer={weights}, or name=… to start another run") from error


def _text_of_weights(weights: Path) -> TextConfig | None:
    """Return the text of the model in a folder of weights.

    Raises:
        OSError, ValueError: they are damaged.
    """
    if is_captioner(weights):
        return cast(CaptionerConfig, load_finetuned_config(weights)).text
    return cast(CausalFusionConfig, load_config(weights)).text
