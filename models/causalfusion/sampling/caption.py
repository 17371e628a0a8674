"""Captions: text decoded from images, one token at a time over a KV cache.

Shapes: B images, L image tokens, T text tokens, V vocabulary, k beams.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, cast

import torch
from torch import Tensor

from .. import draws
from ..config import CausalFusionConfig, TextConfig
from ..factorization.ordering import patch_orders
from ..factorization.steps import equal_step_sizes
from ..model import Model, ModelConfig
from ..transformer import CausalFusion


@dataclass(frozen=True, kw_only=True)
class CaptionConfig:
    """Options of decoding: greedy unless `temperature` or `beam` says otherwise."""

    __pydantic_config__: ClassVar[dict[str, object]] = {
        "extra": "forbid",
        "use_attribute_docstrings": True,
        "allow_inf_nan": False,
    }

    temperature: float = 0.0
    """Temperature of sampling. 0 takes the most probable token (greedy)."""
    top_p: float = 1.0
    """Sample among the most probable tokens that together have this probability (nucleus sampling)."""
    beam: int = 1
    """Hypotheses that a beam search keeps. The one with the largest sum of log probabilities is taken."""
    num_ar_steps: int = 1
    """S: AR steps in which the tokens of the described image are read, in raster order. 1 for a Transfusion."""
    max_tokens: int | None = None
    """Largest number of tokens, those that begin and end the text included. null: as many as the model takes."""

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature must not be negative, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p}")
        for name in ("beam", "num_ar_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.beam > 1 and self.temperature:
            raise ValueError(
                f"beam {self.beam} and temperature {self.temperature} exclude each other: leave one out"
            )
        if self.top_p < 1 and not self.temperature:
            raise ValueError(f"top_p {self.top_p} needs a temperature above 0: greedy decoding does not sample")


@dataclass(frozen=True)
class Captions:
    """Decoded texts of B images."""

    tokens: Tensor
    """(B, T) int64: from the first token to the last one or the limit, then padding of `end`."""
    lengths: Tensor
    """(B,) int64 tokens of each text, the first and the last one included."""
    log_probabilities: Tensor
    """(B,) sum over the tokens that were decoded, those of a given beginning left out."""

    def __getitem__(self, row: int) -> list[int]:
        """Return the tokens of one text."""
        return [int(token) for token in self.tokens[row, : int(self.lengths[row])]]

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self.lengths)


class TextDecoding(Protocol):
    """Images during the decoding of their texts, such as `causalfusion.transformer.TextContext`."""

    text: TextConfig
    """Sizes of the texts."""
    vocabulary: int
    """Number of tokens that have logits."""

    def next(self, tokens_B: Tensor) -> Tensor:
        """Add one token to each text, and return the logits of the token behind it: (B, `vocabulary`)."""

    def select(self, rows: Tensor) -> None:
        """Replace the samples by samples `rows`, with their texts so far."""


class ImageDescriber(Protocol):
    """Model that only describes images, such as `causalfusion.representation.Captioner`."""

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""

    def describing(self, latents: Tensor) -> TextDecoding:
        """Start describing images. Raises ValueError if the latents do not fit the model."""


@torch.no_grad()
def caption(
    model: Model | ImageDescriber,
    latents: Tensor,
    *,
    begin: int,
    end: int,
    config: CaptionConfig | None = None,
    beginning: Sequence[int] = (),
    vocabulary: int | None = None,
    seed: int = 0,
    indices: Sequence[int] | None = None,
    on_step: Callable[[], None] = lambda: None,
) -> Captions:
    """Describe images.

    Args:
        model: the network, usually with EMA weights.
        latents: (B, channels, height, width) in the model's scale.
        begin: token that begins a text.
        end: token that ends it.
        config: how tokens are chosen (default: greedily).
        beginning: tokens that each text begins with, behind `begin`.
        vocabulary: number of tokens to choose from, those of the tokenizer (default: all rows of the model's table,
            which may have more).
        seed: decides sampled tokens, with an image's index.
        indices: number of each image (default: 0…B−1). Text i is the same in any batch.
        on_step: called after each token.

    Raises:
        ValueError: the model has no text or not so many AR steps, the latents do not fit it, or the beginning is
            too long.
    """
    config = config or CaptionConfig()
    context = _read_images(model, latents, config.num_ar_steps)
    text = context.text
    context.vocabulary = min(vocabulary or text.vocabulary, text.vocabulary)
    limit = min(config.max_tokens or text.max_tokens, text.max_tokens)
    given = [begin, *beginning]
    if outside := [token for token in (*given, end) if not 0 <= token < context.vocabulary]:
        raise ValueError(f"text tokens must lie in [0, {context.vocabulary - 1}], got {outside[0]}")
    if len(given) >= limit:
        raise ValueError(f"a text of at most {limit} tokens cannot begin with {len(given)} given ones")
    indices = range(len(latents)) if indices is None else indices
    if len(indices) != len(latents):
        raise ValueError(f"{len(latents)} images need as many indices, got {len(indices)}")
    first = None
    for token in given:
        first = context.next(torch.full((len(latents),), token, device=model.device))
    assert first is not None
    if config.temperature:
        generators = draws.sample_streams(seed, "caption", indices)
        choose = lambda logits: _sample(logits, config, generators)  # noqa: E731
        return _decode(context, first, given, end, limit, choose, on_step)
    if config.beam == 1:
        return _decode(context, first, given, end, limit, lambda logits: logits.argmax(dim=1), on_step)
    return _beam_search(context, first, given, end, limit, config.beam, on_step)


def check_caption_steps(config: ModelConfig, num_ar_steps: int) -> list[int]:
    """Return the sizes of the AR steps in which a model reads the images that it describes.

    Raises:
        ValueError: the model has no text, it is a Transfusion and they are several, or more than its image tokens.
    """
    if not isinstance(config, CausalFusionConfig) or config.text is None:
        raise ValueError("this model has no text, so that it cannot describe images")
    if config.architecture == "transfusion" and num_ar_steps != 1:
        raise ValueError(f"a Transfusion reads images in one AR step: num_ar_steps must be 1, got {num_ar_steps}")
    return equal_step_sizes(config.num_tokens, num_ar_steps)


def _read_images(model: Model | ImageDescriber, latents: Tensor, num_ar_steps: int) -> TextDecoding:
    """Start the decoding of texts of images.

    Raises:
        ValueError: the model has no text or not so many AR steps, or the latents do not fit it.
    """
    if not isinstance(model, Model):
        if num_ar_steps != 1:
            raise ValueError(f"a captioner reads images at once: num_ar_steps must be 1, got {num_ar_steps}")
        return model.describing(latents)
    sizes = check_caption_steps(model.config, num_ar_steps)
    model = cast(CausalFusion, model)
    size = model.config
    wanted = (size.in_channels, size.input_size, size.input_size)
    if latents.shape[1:] != wanted:
        raise ValueError(f"images need latents (B, {', '.join(map(str, wanted))}), got {tuple(latents.shape)}")
    order = patch_orders("raster", size.grid_size, [torch.Generator()] * len(latents)).to(model.device)
    patches = model.patchify(latents.to(model.device, model.dtype))
    return model.describing(patches, order, sizes)


def _decode(
    context: TextDecoding,
    logits_BV: Tensor,
    given: list[int],
    end: int,
    limit: int,
    choose: Callable[[Tensor], Tensor],
    on_step: Callable[[], None],
) -> Captions:
    """Choose one token after the other until all texts have ended, or reached the limit."""
    count, device = len(logits_BV), logits_BV.device
    tokens = torch.tensor(given, device=device).expand(count, -1)
    ended = torch.zeros(count, dtype=torch.bool, device=device)
    total = _precise(logits_BV).new_zeros(count)
    lengths = torch.full((count,), len(given), device=device)
    while tokens.shape[1] < limit and not bool(ended.all()):
        logits = _precise(logits_BV)
        token = torch.where(ended, end, choose(logits))
        chosen = logits.log_softmax(dim=1).gather(1, token[:, None])[:, 0]
        total = total + chosen.masked_fill(ended, 0)
        lengths = lengths + (~ended).long()
        tokens = torch.cat([tokens, token[:, None]], dim=1)
        ended = ended | (token == end)
        on_step()
        if tokens.shape[1] < limit and not bool(ended.all()):
            logits_BV = context.next(token)
    return Captions(tokens.cpu(), lengths.cpu(), total.cpu())


def _precise(logits: Tensor) -> Tensor:
    """Return logits in fp32, or fp64 of a float64 model: sums of log probabilities need it."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _sample(logits_BV: Tensor, config: CaptionConfig, generators: Sequence[torch.Generator]) -> Tensor:
    """Draw a token for each image from the nucleus of its distribution: (B,)."""
    probabilities, order = (logits_BV / config.temperature).softmax(dim=1).sort(dim=1, descending=True, stable=True)
    before = probabilities.cumsum(dim=1) - probabilities
    probabilities = probabilities.masked_fill(before >= config.top_p, 0)
    edges = probabilities.cumsum(dim=1)
    drawn = torch.stack([torch.rand((), generator=generator, dtype=torch.float64) for generator in generators])
    places = torch.searchsorted(edges, drawn.to(edges)[:, None] * edges[:, -1:], right=True)
    return order.gather(1, places.clamp(max=order.shape[1] - 1))[:, 0]


def _beam_search(
    context: TextDecoding,
    logits_BV: Tensor,
    given: list[int],
    end: int,
    limit: int,
    beam: int,
    on_step: Callable[[], None],
) -> Captions:
    """Keep the `beam` most probable texts of each image. One that has ended goes on with `end` at no cost."""
    count, vocabulary = logits_BV.shape
    device, width = logits_BV.device, 1
    tokens = torch.tensor(given, device=device).expand(count, 1, -1)
    total = _precise(logits_BV).new_zeros(count, 1)
    ended = torch.zeros(count, 1, dtype=torch.bool, device=device)
    only_end = torch.full((vocabulary,), -torch.inf, device=device, dtype=total.dtype)
    only_end[end] = 0
    while tokens.shape[2] < limit and not bool(ended.all()):
        scores = _precise(logits_BV).log_softmax(dim=1).view(count, width, vocabulary)
        scores = torch.where(ended[..., None], only_end, scores) + total[..., None]
        kept = min(beam, width * vocabulary)
        total, places = scores.flatten(1).topk(kept, dim=1)
        parents, token = places // vocabulary, places % vocabulary
        tokens = tokens.gather(1, parents[..., None].expand(-1, -1, tokens.shape[2]))
        tokens = torch.cat([tokens, token[..., None]], dim=2)
        ended = ended.gather(1, parents) | (token == end)
        context.select((torch.arange(count, device=device)[:, None] * width + parents).flatten())
        width = kept
        on_step()
        if tokens.shape[2] < limit and not bool(ended.all()):
            logits_BV = context.next(token.flatten())
    best = total.argmax(dim=1)
    tokens = tokens[torch.arange(count, device=device), best]
    decoded = tokens[:, len(given) :]
    before_end = (decoded == end).long().cumsum(dim=1) - (decoded == end).long() == 0
    lengths = len(given) + before_end.sum(dim=1)
    return Captions(tokens.cpu(), lengths.cpu(), total[torch.arange(count, device=device), best].cpu())
