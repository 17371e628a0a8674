"""Training loss of one model that draws images from text and describes them (Section 4.3, Table 11).

Most samples have their text first and train the image alone. The others have it last: they train the image without
text, which is the unconditional branch, and the text as next tokens.

Shapes: B samples, S AR steps, L image tokens, T text tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from math import floor

import torch
from torch import Tensor
from torch.nn import functional

from .attention.plan import AttentionPlan
from .baselines.transfusion import Transfusion, lay_out_described
from .factorization.sequence import lay_out
from .noise.diffusion import DiffusionConfig
from .objective import Draws, Loss, Objective, ObjectiveConfig, TextObjectiveConfig
from .transformer import CausalFusion

Forward = Callable[..., "Tensor | tuple[Tensor, Tensor]"]
"""Calls the model with the arguments of `CausalFusion.forward`."""


@dataclass(frozen=True)
class Texts:
    """One text of each of B images."""

    tokens: Tensor
    """(B, T) int64, T at least the largest length."""
    lengths: Tensor
    """(B,) int64, at least 2: the first token predicts the second."""
    last: Tensor
    """(B,) bool: the text stands behind its image."""

    def __getitem__(self, rows: slice | Tensor) -> Texts:
        """Return some of the texts."""
        return Texts(self.tokens[rows], self.lengths[rows], self.last[rows])

    @property
    def targets(self) -> int:
        """Tokens that texts behind their images predict: all but the first of each."""
        return int((self.lengths[self.last] - 1).sum())


def text_last(samples: range, share: float) -> Tensor:
    """Return which samples have their text behind the image: (B,) bool.

    Sample i has if ⌊(i + 1) q⌋ > ⌊i q⌋ for the share q. Any n samples in a row hold ⌊n q⌋ or ⌈n q⌉ of them.

    Args:
        samples: positions in the stream of rows.
        share: q in [0, 1], taken as the decimal number that it is written as.
    """
    exact = Fraction(str(share))
    return torch.tensor([floor((i + 1) * exact) > floor(i * exact) for i in samples], dtype=torch.bool)


@dataclass(frozen=True)
class TextImageLoss:
    """Loss of one batch."""

    weighted: Tensor
    """Scalar to minimise: the image loss of all samples, and `weight` times the text loss."""
    mse: Tensor
    """Scalar, detached: mean squared error of all images."""
    text: Tensor
    """Scalar, detached: cross entropy of a target token, summed over the targets and divided by `targets`."""


class TextImageObjective:
    """Training loss of a batch of latents and texts.

    Raises:
        ValueError: the model cannot be trained with this objective.
    """

    def __init__(self, model: CausalFusion, config: ObjectiveConfig, diffusion: DiffusionConfig) -> None:
        self.images = Objective(model, config, diffusion)
        if config.text is None:
            raise ValueError("the objective of text and images needs objective.text")
        self.model, self.config = model, config
        self.text: TextObjectiveConfig = config.text
        self.num_train_steps = diffusion.num_train_steps

    def __call__(
        self, forward: Forward, latents: Tensor, texts: Texts, drawn: Draws, targets: float | Tensor
    ) -> TextImageLoss:
        """Return the loss of latents (B, channels, height, width).

        The model runs once for each kind of sample, unless the share of text-last samples is 0 or 1. A batch
        without one kind runs it on a sample of the other with weight 0, so that all ranks make the same calls.

        Args:
            forward: calls the model.
            latents: in the model's scale.
            texts: one of each image.
            drawn: the random numbers of the batch. The AR split is shared by both kinds.
            targets: divisor of the summed text loss: the target tokens of the whole step over its number of
                batches, so that the mean over batches is that over tokens.
        """
        zero = latents.new_zeros((), dtype=torch.promote_types(latents.dtype, torch.float32))
        weighted, mse, text = zero, zero, zero
        for last, wanted in ((False, self.text.share < 1), (True, self.text.share > 0)):
            if not wanted:
                continue
            rows = (texts.last == last).nonzero().flatten()
            weight = len(rows) / len(latents)
            rows = rows if len(rows) else torch.zeros(1, dtype=torch.int64)
            part = latents[rows.to(latents.device)], texts[rows.to(texts.last.device)], drawn.part(rows)
            if last:
                image, tokens = self._image_first(forward, *part)
                tokens = tokens if weight else tokens * 0
                weighted = weighted + self.text.weight * tokens / targets
                text = text + tokens.detach() / targets
            else:
                image = self._text_first(forward, *part)
            weighted, mse = weighted + weight * image.weighted, mse + weight * image.mse
        return TextImageLoss(weighted=weighted, mse=mse, text=text)

    def _text_first(self, forward: Forward, latents: Tensor, texts: Texts, drawn: Draws) -> Loss:
        device, corrupted = latents.device, self.images.corrupt(latents, drawn)
        longest = int(texts.lengths.max())
        layout = lay_out(
            drawn.sizes,
            class_tokens=0,
            text_before=longest,
            copies=corrupted.copies,
            time_token=self._time_token,
            multiple=self.config.multiple(self.model.config.num_tokens, device.type),
        )
        known = corrupted.clean[:, : corrupted.clean.shape[1] - drawn.sizes[-1]]
        plan = AttentionPlan.of(layout, texts.lengths)
        tokens = texts.tokens[:, :longest].to(device)
        prediction = forward(corrupted.noised, known, corrupted.order, corrupted.times, None, plan, tokens)
        assert isinstance(prediction, Tensor)
        return self.images.compare(prediction, corrupted.target, drawn)

    def _image_first(self, forward: Forward, latents: Tensor, texts: Texts, drawn: Draws) -> tuple[Loss, Tensor]:
        """Return the loss of the images, and the cross entropy summed over the target tokens."""
        device, longest = latents.device, int(texts.lengths.max())
        if isinstance(self.model, Transfusion):
            drawn = self._nearly_clean(drawn)
            layout = lay_out_described(self.model.config.num_tokens, class_tokens=0, text_after=longest)
        else:
            layout = lay_out(
                drawn.sizes,
                class_tokens=0,
                text_after=longest,
                copies=drawn.noise.shape[1],
                time_token=self._time_token,
                multiple=self.config.multiple(self.model.config.num_tokens, device.type),
            )
        corrupted = self.images.corrupt(latents, drawn)
        tokens = texts.tokens[:, :longest].to(device)
        prediction, logits = forward(
            corrupted.noised,
            corrupted.clean,
            corrupted.order,
            corrupted.times,
            None,
            AttentionPlan.of(layout),
            None,
            tokens,
        )
        return self.images.compare(prediction, corrupted.target, drawn), next_token_loss(
            logits, tokens, texts.lengths.to(device)
        )

    @property
    def _time_token(self) -> bool:
        return self.model.config.time_conditioning == "token"

    def _nearly_clean(self, drawn: Draws) -> Draws:
        """Map the times to [0, max_time): described images of a Transfusion are not noised beyond it."""
        limit = self.text.max_time
        if limit is None:
            return drawn
        return drawn.with_times(drawn.times * limit // self.num_train_steps)


def next_token_loss(logits_BTV: Tensor, tokens_BT: Tensor, lengths_B: Tensor) -> Tensor:
    """Return the cross entropy of each token given those before it, summed over all texts and tokens.

    Args:
        logits_BTV: logits of the token behind each token.
        tokens_BT: the texts.
        lengths_B: tokens of each. Those behind are padding.
    """
    precise = torch.promote_types(logits_BTV.dtype, torch.float32)
    logits, targets = logits_BTV[:, :-1].to(precise), tokens_BT[:, 1:]
    entropy = functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    real = torch.arange(1, tokens_BT.shape[1], device=tokens_BT.device) < lengths_B[:, None]
    return (entropy * real).sum()
