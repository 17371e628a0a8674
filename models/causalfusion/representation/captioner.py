"""Captioner that is fine-tuned from a trained model, as in FLIP (Table 13, Appendix C, arXiv 2212.00794).

The features of one block go through a transformer encoder. A transformer decoder reads them by cross-attention and
writes the text. Its layers normalise before each residual branch, as the trained model's blocks do.

Shapes: B images, L image tokens, T text tokens, N tokens of a sequence, V vocabulary, D width of the trained model.
W width, H heads and E = W / H head width of the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
from einops import rearrange
from torch import Tensor, nn

from .. import draws
from ..attention.cache import KVCache, LayerCache
from ..attention.dense import attend
from ..config import TextConfig, check_types
from ..model import Model, ModelConfig
from ..text.embedding import TextTokens
from .backbone import Backbone
from .classifier import NORM_EPS, backbone_config
from .features import Condition, check_condition

_LARGEST = {"width": 65_536, "num_heads": 4_096, "encoder_depth": 1_000, "decoder_depth": 1_000}


@dataclass(frozen=True, kw_only=True)
class CaptionerConfig:
    """A captioner: the model that it is fine-tuned from, and its head.

    Raises:
        ValueError: a value is out of range, or the backbone lacks the layer or the condition.
    """

    __pydantic_config__: ClassVar[dict[str, object]] = {
        "extra": "forbid",
        "use_attribute_docstrings": True,
        "allow_inf_nan": False,
    }

    architecture: Literal["captioner"] = "captioner"
    """Kind of model."""
    backbone: ModelConfig
    """The trained model."""
    text: TextConfig
    """Text tokens of the decoder, with a table of the head's width."""
    layer: int
    """Block whose output the head reads, from 1 to the backbone's depth (Appendix C: 14, 21 or 24)."""
    width: int = 384
    """Width of the head (Appendix C)."""
    num_heads: int = 6
    """Attention heads of the head (Appendix C). Must divide `width`."""
    encoder_depth: int = 3
    """Layers of the encoder (Appendix C)."""
    decoder_depth: int = 3
    """Layers of the decoder (Appendix C)."""
    mlp_ratio: float = 4.0
    """Hidden width of the head's MLPs over `width`."""
    dropout: float = 0.1
    """Share of numbers that dropout zeroes in training, in [0, 1), in the head alone (Table 13)."""
    condition: Condition = "none"
    """Condition of a DiT's blocks: `none` is the zero vector, `null` time 0 and the null class."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "backbone", backbone_config(self.backbone))
        if isinstance(self.text, dict):  # of a file of settings
            object.__setattr__(self, "text", TextConfig(**self.text))
        if not isinstance(self.text, TextConfig):
            raise ValueError(f"text must be the configuration of text tokens, got {self.text!r:.100}")
        check_types(self)
        check_condition(self.backbone, self.condition)
        if not 1 <= self.layer <= self.backbone.depth:
            raise ValueError(
                f"layer must lie in [1, {self.backbone.depth}], the backbone's blocks, got {self.layer}"
            )
        for name, most in _LARGEST.items():
            least = 0 if name == "encoder_depth" else 1
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name} must lie in [{least}, {most:,}], got {getattr(self, name)!r:.30}")
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}")
        if not 0 < self.mlp_ratio <= 100:
            raise ValueError(f"mlp_ratio must lie in (0, 100], got {self.mlp_ratio}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")


@dataclass(frozen=True)
class HeadDraws:
    """Draws of dropout in the head of a captioner: True for a number that is kept.

    Dropout acts on the embedded tokens and on the output of each residual branch before it is added (arXiv
    1706.03762, Section 5.4).
    """

    image: Tensor
    """(B, 1 + 2 · encoder layers, L, W) bool."""
    text: Tensor
    """(B, 1 + 3 · decoder layers, max_tokens, W) bool."""

    def to(self, device: torch.device) -> HeadDraws:
        """Return the draws on a device."""
        return HeadDraws(self.image.to(device), self.text.to(device))


class _Branches:
    """Dropout of the residual branches of one layer, one after the other."""

    def __init__(self, rate: float, kept_BKNW: Tensor | None, first: int) -> None:
        self.rate, self.kept_BKNW, self.place = rate, kept_BKNW, first

    def __call__(self, x_BNW: Tensor) -> Tensor:
        if self.kept_BKNW is None:
            return x_BNW
        kept = self.kept_BKNW[:, self.place, : x_BNW.shape[1]]
        self.place += 1
        return x_BNW * kept / (1 - self.rate)


class HeadAttention(nn.Module):
    """Multi-head attention of the head, to its own tokens or to those of the image."""

    def __init__(self, config: CaptionerConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.q = nn.Linear(config.width, config.width)
        self.kv = nn.Linear(config.width, 2 * config.width)
        self.proj = nn.Linear(config.width, config.width)

    def keys_and_values(self, x_BNW: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values of tokens: two (B, H, N, E)."""
        k, v = rearrange(self.kv(x_BNW), "b n (two h e) -> two b h n e", two=2, h=self.num_heads)
        return k, v

    def forward(self, x_BNW: Tensor, keys_and_values: tuple[Tensor, Tensor], mask: Tensor | None = None) -> Tensor:
        q = rearrange(self.q(x_BNW), "b n (h e) -> b h n e", h=self.num_heads)
        out: Tensor = self.proj(rearrange(attend(q, *keys_and_values, mask), "b h n e -> b n (h e)"))
        return out


def _mlp(config: CaptionerConfig) -> nn.Sequential:
    hidden = round(config.width * config.mlp_ratio)
    return nn.Sequential(nn.Linear(config.width, hidden), nn.GELU("tanh"), nn.Linear(hidden, config.width))


class EncoderLayer(nn.Module):
    """Attention of all image tokens to all image tokens, then an MLP."""

    def __init__(self, config: CaptionerConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width)
        self.attn = HeadAttention(config)
        self.norm2 = nn.LayerNorm(config.width)
        self.mlp = _mlp(config)

    def forward(self, x_BLW: Tensor, drop: _Branches) -> Tensor:
        normed = self.norm1(x_BLW)
        x_BLW = x_BLW + drop(self.attn(normed, self.attn.keys_and_values(normed)))
        return x_BLW + drop(self.mlp(self.norm2(x_BLW)))


class DecoderLayer(nn.Module):
    """Attention of text tokens to those before them, attention to the image tokens, then an MLP."""

    def __init__(self, config: CaptionerConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width)
        self.attn = HeadAttention(config)
        self.norm2 = nn.LayerNorm(config.width)
        self.cross = HeadAttention(config)
        self.norm3 = nn.LayerNorm(config.width)
        self.mlp = _mlp(config)

    def forward(
        self,
        x_BTW: Tensor,
        image: tuple[Tensor, Tensor],
        mask: Tensor | None,
        drop: _Branches,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """Return the output for the given tokens.

        Args:
            x_BTW: text tokens, behind those of the cache.
            image: keys and values of the image tokens (`cross.keys_and_values`).
            mask: which text tokens see which.
            drop: dropout of the residual branches.
            cache: keys and values of earlier text tokens.
        """
        normed = self.norm1(x_BTW)
        own = self.attn.keys_and_values(normed)
        own = own if cache is None else cache.extend(*own)
        x_BTW = x_BTW + drop(self.attn(normed, own, mask))
        x_BTW = x_BTW + drop(self.cross(self.norm2(x_BTW), image))
        return x_BTW + drop(self.mlp(self.norm3(x_BTW)))


class Captioner(nn.Module):
    """Features of one block of a trained model, an encoder over them, and a decoder of text.

    The features get a new layer norm and a linear layer to the head's width, and no more positions than they have.
    Text tokens have learned positions, as in Table 11.
    """

    def __init__(self, config: CaptionerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.backbone = Backbone(config.backbone, depth=config.layer, condition=config.condition)
        self.norm = nn.LayerNorm(config.backbone.hidden_size, eps=NORM_EPS)
        self.projection = nn.Linear(config.backbone.hidden_size, width)
        self.encoder = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_depth))
        self.encoder_norm = nn.LayerNorm(width)
        self.text = TextTokens(config.text, width)
        self.decoder = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_depth))
        self.decoder_norm = nn.LayerNorm(width)
        self._initialise()

    def _initialise(self) -> None:
        for part in (self.projection, self.encoder, self.decoder):
            for module in part.modules():
                if isinstance(module, nn.Linear):
                    nn.init.xavier_uniform_(module.weight)
                    nn.init.zeros_(module.bias)
        self.text.initialise()

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self.projection.weight.device

    @property
    def decoder_layers(self) -> list[DecoderLayer]:
        """Layers of the decoder."""
        return cast(list[DecoderLayer], list(self.decoder))

    def load_backbone(self, model: Model) -> None:
        """Copy the weights of a trained model, usually EMA weights. The head is left as it is.

        Raises:
            ValueError: the model has another configuration than the backbone.
        """
        self.backbone.load(model)

    def draw(self, seed: int, indices: Sequence[int]) -> HeadDraws:
        """Draw the dropout of the head, on the CPU. Sample i draws the same in any batch, for any length of text.

        Args:
            seed: of the run.
            indices: position of each sample in the stream of training.
        """
        size = self.config
        image = (1 + 2 * size.encoder_depth, size.backbone.num_tokens, size.width)
        text = (1 + 3 * size.decoder_depth, size.text.max_tokens, size.width)
        generators = draws.sample_streams(seed, "dropout", indices)
        drawn = [[_kept(shape, size.dropout, each) for shape in (image, text)] for each in generators]
        return HeadDraws(*(torch.stack(part) for part in zip(*drawn, strict=True)))

    def forward(self, latents: Tensor, tokens_BT: Tensor, drawn: HeadDraws | None = None) -> Tensor:
        """Return the logits of the token behind each token: (B, T, V).

        Args:
            latents: (B, channels, height, width) in the model's scale.
            tokens_BT: texts. Each token sees those before it alone, so that padding behind a text changes nothing.
            drawn: result of `draw`, for dropout. Read in training mode alone.

        Raises:
            ValueError: the latents do not fit the model, the texts are too long, or dropout has no draws in
                training mode.
        """
        if self.training and self.config.dropout and drawn is None:
            raise ValueError("dropout needs draws in training mode: give the result of draw(seed, indices)")
        drawn = drawn.to(self.device) if drawn is not None and self.training and self.config.dropout else None
        memory = self.encode(latents, None if drawn is None else drawn.image)
        kept = None if drawn is None else drawn.text
        x = self._branches(kept, 0)(self.text(tokens_BT))
        count = tokens_BT.shape[1]
        mask = torch.ones(count, count, dtype=torch.bool, device=x.device).tril()
        for index, layer in enumerate(self.decoder_layers):
            image = layer.cross.keys_and_values(memory)
            x = layer(x, image, mask, self._branches(kept, 1 + 3 * index))
        logits: Tensor = self.text(self.decoder_norm(x))
        return logits

    def encode(self, latents: Tensor, kept: Tensor | None = None) -> Tensor:
        """Return the image tokens that the decoder reads: (B, L, W).

        Args:
            latents: (B, channels, height, width) in the model's scale.
            kept: draws of dropout. None: nothing is dropped.
        """
        x = self._branches(kept, 0)(self.projection(self.norm(self.backbone(latents))))
        for index, layer in enumerate(self.encoder):
            x = layer(x, self._branches(kept, 1 + 2 * index))
        memory: Tensor = self.encoder_norm(x)
        return memory

    def describing(self, latents: Tensor) -> CaptionerContext:
        """Start describing images: see `CaptionerContext`."""
        return CaptionerContext(self, latents)

    def _branches(self, kept: Tensor | None, first: int) -> _Branches:
        return _Branches(self.config.dropout, kept, first)


class CaptionerContext:
    """Images during the decoding of their text: their keys and values, and those of the text so far."""

    def __init__(self, model: Captioner, latents: Tensor) -> None:
        self.model = model
        self.text = model.config.text
        self.vocabulary = self.text.vocabulary
        memory = model.encode(latents.to(model.device))
        self.images = [layer.cross.keys_and_values(memory) for layer in model.decoder_layers]
        self.cache = KVCache(len(self.images), self.text.max_tokens)

    def next(self, tokens_B: Tensor) -> Tensor:
        """Add one token to each text, and return the logits of the token behind it: (B, `vocabulary`)."""
        model = self.model
        x = model.text(tokens_B[:, None], self.cache.length)
        for index, layer in enumerate(model.decoder):
            own = self.cache.layer(index, rows=len(x))
            x = layer(x, self.images[index], None, model._branches(None, 0), own)
        self.cache.length += 1
        logits: Tensor = model.text(model.decoder_norm(x))
        return logits[:, 0, : self.vocabulary]

    def select(self, rows: Tensor) -> None:
        """Replace the samples by samples `rows`, with their texts so far. A sample may occur several times."""
        self.cache.select(rows)
        self.images = [(keys[rows], values[rows]) for keys, values in self.images]


def _kept(shape: tuple[int, ...], rate: float, generator: torch.Generator) -> Tensor:
    return torch.empty(shape, dtype=torch.bool).bernoulli_(1 - rate, generator=generator)
