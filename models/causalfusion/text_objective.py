"""Training loss of one model that draws images from text and describes them (Section 4.3, Table 11).

Most samples have their text first and train the image alone. The others have it last: they train the image without
text, which is the unconditional branch, and the text as next tokens.

Shapes: B samples, S AR steps, L image tokens, T text tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from .objective import Draws, Loss, Objective, ObjectiveConfig, Prepared, TextObjectiveConfig
from .slab import Slab
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
class Kind:
    """Samples of one batch with the text on one side of their images. N samples, T tokens in the longest text."""

    last: bool
    """The texts stand behind the images."""
    weight: float
    """Share of the batch. 0: the one sample is of the other kind, and only keeps the ranks together."""
    rows: Tensor
    """(N,) int64: places in the batch."""
    tokens: Tensor
    """(N, T) int64."""
    lengths: Tensor
    """(N,) int64."""
    images: Prepared
    """Draws of the images, and the sequence with the texts."""


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

        Args:
            forward: calls the model.
            latents: in the model's scale.
            texts: one of each image, on the CPU.
            drawn: the random numbers of the batch. The AR split is shared by both kinds.
            targets: see `loss`.
        """
        return self.loss(forward, latents, Slab(self.prepare(texts, drawn), latents.device).on_device(), targets)

    def prepare(self, texts: Texts, drawn: Draws) -> list[Kind]:
        """Return the samples of each kind that the model runs on, on the host.

        It runs once for each kind, unless the share of text-last samples is 0 or 1. A batch without one kind runs
        it on a sample of the other with weight 0, so that all ranks make the same calls.
        """
        kinds = []
        for last, wanted in ((False, self.text.share < 1), (True, self.text.share > 0)):
            if not wanted:
                continue
            rows = (texts.last == last).nonzero().flatten()
            weight = len(rows) / len(texts.last)
            rows = rows if len(rows) else torch.zeros(1, dtype=torch.int64)
            of_kind, part = texts[rows], drawn.part(rows)
            longest = int(of_kind.lengths.max())
            if last and isinstance(self.model, Transfusion):
                part = self._nearly_clean(part)
            kinds.append(
                Kind(
                    last=last,
                    weight=weight,
                    rows=rows,
                    tokens=of_kind.tokens[:, :longest],
                    lengths=of_kind.lengths,
                    images=self.images.prepare(part, self._plan(part, of_kind.lengths, last)),
                )
            )
        return kinds

    def loss(
        self, forward: Forward, latents: Tensor, kinds: Sequence[Kind], targets: float | Tensor
    ) -> TextImageLoss:
        """Return the loss of latents (B, channels, height, width), on the device of all that was prepared.

        Args:
            forward: calls the model.
            latents: in the model's scale.
            kinds: the result of `prepare`.
            targets: divisor of the summed text loss: the target tokens of the whole step over its number of
                batches, so that the mean over batches is that over tokens.
        """
        zero = latents.new_zeros((), dtype=torch.promote_types(latents.dtype, torch.float32))
        weighted, mse, text = zero, zero, zero
        for kind in kinds:
            part = latents[kind.rows]
            if kind.last:
                image, tokens = self._image_first(forward, part, kind)
                tokens = tokens if kind.weight else tokens * 0
                weighted = weighted + self.text.weight * tokens / targets
                text = text + tokens.detach() / targets
            else:
                image = self._text_first(forward, part, kind)
            weighted, mse = weighted + kind.weight * image.weighted, mse + kind.weight * image.mse
        return TextImageLoss(weighted=weighted, mse=mse, text=text)

    def _plan(self, drawn: Draws, lengths: Tensor, last: bool) -> AttentionPlan:
        longest = int(lengths.max())
        if last and isinstance(self.model, Transfusion):
            num_tokens = self.model.config.num_tokens
            return AttentionPlan.of(lay_out_described(num_tokens, class_tokens=0, text_after=longest))
        layout = lay_out(
            drawn.sizes,
            class_tokens=0,
            text_before=0 if last else longest,
            text_after=longest if last else 0,
            copies=drawn.noise.shape[1],
            time_token=self._time_token,
            multiple=self.config.multiple(self.model.config.num_tokens, self.model.device.type),
        )
        return AttentionPlan.of(layout, None if last else lengths)

    def _text_first(self, forward: Forward, latents: Tensor, kind: Kind) -> Loss:
        ready = kind.images
        corrupted = self.images.corrupt(latents, ready)
        known = corrupted.clean[:, : corrupted.clean.shape[1] - ready.sizes[-1]]
        plan = ready.plan
        prediction = forward(corrupted.noised, known, corrupted.order, corrupted.times, None, plan, kind.tokens)
        assert isinstance(prediction, Tensor)
        return self.images.compare(prediction, corrupted.target, ready)

    def _image_first(self, forward: Forward, latents: Tensor, kind: Kind) -> tuple[Loss, Tensor]:
        """Return the loss of the images, and the cross entropy summed over the target tokens."""
        ready = kind.images
        corrupted = self.images.corrupt(latents, ready)
        prediction, logits = forward(
            corrupted.noised,
            corrupted.clean,
            corrupted.order,
            corrupted.times,
            None,
            ready.plan,
            None,
            kind.tokens,
        )
        loss = self.images.compare(prediction, corrupted.target, ready)
        return loss, next_token_loss(logits, kind.tokens, kind.lengths)

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
