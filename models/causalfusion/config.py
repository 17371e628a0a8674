"""Model configuration: every size and option of a CausalFusion transformer."""

from __future__ import annotations

import math
import numbers
import re
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

PatchOrder = Literal["random", "raster", "blockwise", "dilated"]
PositionEmbedding = Literal["sinusoidal", "learnable"]
TimeConditioning = Literal["embedding", "token"]

# Larger sizes are mistakes, and building such a model would take all memory or never end.
_LARGEST = {
    "input_size": 4_096,
    "in_channels": 4_096,
    "patch_size": 4_096,
    "hidden_size": 65_536,
    "depth": 1_000,
    "num_heads": 4_096,
    "mlp_ratio": 100,
    "num_classes": 10_000_000,
    "class_tokens": 4_096,
    "class_token_repeat": 4_096,
    "num_tokens": 65_536,
    "vocabulary": 10_000_000,
    "max_tokens": 65_536,
}


def check_types(config: Any) -> None:
    """Check that each field of a dataclass has a value of its type. Python itself accepts any.

    Raises:
        ValueError: one does not, or a number is not finite.
    """
    for name, kind in _types(config.__class__).items():
        value = getattr(config, name)
        if get_origin(kind) is Literal:
            if value not in get_args(kind):
                raise ValueError(f"{name} must be one of {', '.join(map(str, get_args(kind)))}, got {value!r:.200}")
        elif kind is bool:
            if not isinstance(value, bool):
                raise ValueError(f"{name} must be true or false, got {value!r:.200}")
        elif kind is int:
            if not isinstance(value, numbers.Integral) or isinstance(value, bool):
                raise ValueError(f"{name} must be a whole number, got {value!r:.200}")
        elif kind is float and not _is_finite(value):
            raise ValueError(f"{name} must be a finite number, got {value!r:.200}")


def _is_finite(value: Any) -> bool:
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return number and -math.inf < value < math.inf  # `math.isfinite` refuses integers that are too large


@cache
def _types(kind: Any) -> dict[str, Any]:
    return {name: hint for name, hint in get_type_hints(kind).items() if get_origin(hint) is not ClassVar}


class TransformerSizes:
    """Sizes that all models have, the quantities derived from them, and their checks.

    Each subclass declares these fields again, because pydantic reads a field's docstring from its own class only.
    """

    input_size: int
    in_channels: int
    patch_size: int
    hidden_size: int
    depth: int
    num_heads: int
    mlp_ratio: float
    num_classes: int

    def __post_init__(self) -> None:
        check_types(self)
        sizes = ("input_size", "in_channels", "patch_size", "hidden_size", "depth", "num_heads", "num_classes")
        self._check_sizes(sizes)
        if self.mlp_ratio <= 0:
            raise ValueError(f"mlp_ratio must be positive, got {self.mlp_ratio}")
        if self.input_size % self.patch_size:
            raise ValueError(f"input_size {self.input_size} is not a multiple of patch_size {self.patch_size}")
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        if self.hidden_size % 4:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of 4 (2-D sinusoids need it)")
        for name in ("mlp_ratio", "num_tokens"):
            if getattr(self, name) > _LARGEST[name]:
                raise ValueError(f"{name} must be at most {_LARGEST[name]:,}, got {getattr(self, name):,}")

    def _check_sizes(self, names: tuple[str, ...]) -> None:
        for name in names:
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
            if value > _LARGEST[name]:
                raise ValueError(f"{name} must be at most {_LARGEST[name]:,}, got {value!r:.30}")

    @property
    def grid_size(self) -> int:
        """Patches along one side of the latent."""
        return self.input_size // self.patch_size

    @property
    def num_tokens(self) -> int:
        """L, the image tokens of one sample."""
        return self.grid_size**2

    @property
    def token_dim(self) -> int:
        """Numbers in one patch: patch_size² · in_channels."""
        return self.patch_size**2 * self.in_channels

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def mlp_size(self) -> int:
        """Hidden width of a block's MLP."""
        return round(self.hidden_size * self.mlp_ratio)

    @property
    def null_class(self) -> int:
        """Label of the unconditional branch: the last row of the class table."""
        return self.num_classes


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Text tokens of a model (Section 4.3, Table 11): their table, their positions and their output layer.

    Raises:
        ValueError: a size is out of range.
    """

    __pydantic_config__: ClassVar[dict[str, object]] = {
        "extra": "forbid",
        "use_attribute_docstrings": True,
        "allow_inf_nan": False,
    }

    vocabulary: int
    """Rows of the table. At least the largest token of the tokenizer + 1 (LLaMA-3: 128,256)."""
    max_tokens: int = 35
    """Largest number of text tokens of one image, those that begin and end it included (Table 11)."""
    tied: bool = True
    """The output layer is the table itself. `false`: it has weights of its own."""
    tokenizer_sha256: str | None = None
    """SHA-256 of the tokenizer's JSON. null: not known yet. Weights that a run writes name that of training."""

    def __post_init__(self) -> None:
        check_types(self)
        for name, least in (("vocabulary", 2), ("max_tokens", 3)):
            value = getattr(self, name)
            if not least <= value <= _LARGEST[name]:
                raise ValueError(f"text.{name} must lie in [{least}, {_LARGEST[name]:,}], got {value!r:.30}")
        digest = self.tokenizer_sha256
        if digest is not None and not (isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest)):
            raise ValueError(f"text.tokenizer_sha256 must be 64 hexadecimal digits, got {digest!r:.100}")


@dataclass(frozen=True, kw_only=True)
class CausalFusionConfig(TransformerSizes):
    """Sizes and options of one CausalFusion transformer (paper: Tables 9, 10 and 11).

    Images are conditioned on class tokens, on text, or on both.

    Raises:
        ValueError: a size is out of range, two sizes do not divide as they must, or nothing conditions an image.
    """

    # Read by pydantic when a platform config embeds this class. Plain data: pydantic is not a dependency.
    __pydantic_config__: ClassVar[dict[str, object]] = {
        "extra": "forbid",
        "use_attribute_docstrings": True,
        "allow_inf_nan": False,
    }

    architecture: Literal["causalfusion", "transfusion"] = "causalfusion"
    """Kind of model. `transfusion` is the baseline of Table 6a, `dit` the AdaLN-zero baseline of Table 1."""
    input_size: int = 32
    """Height and width of the latent, in latent pixels (32 for 256×256 images with an f8 VAE)."""
    in_channels: int = 4
    """Channels of the latent: 4 for the SD VAE, 16 for the MAR VAE, 1 for gray pixels."""
    patch_size: int = 2
    """Side of one square patch, in latent pixels. One patch is one token."""
    hidden_size: int = 1024
    """Width D of the transformer."""
    depth: int = 24
    """Number of transformer blocks."""
    num_heads: int = 16
    """Attention heads. Must divide `hidden_size`."""
    mlp_ratio: float = 4.0
    """Hidden width of a block's MLP over D."""
    num_classes: int = 1000
    """Number of classes. The class table has one more row, the null class of classifier-free guidance."""
    class_tokens: int = 4
    """Class tokens with parameters of their own (Table 8). 0: no classes, only with `text`."""
    class_token_repeat: int = 1
    """Times that the class tokens are repeated (Table 8: 1×64 and 4×16)."""
    position_embedding: PositionEmbedding = "sinusoidal"
    """2-D position embedding: frozen sinusoids (Table 9) or learned ones initialised to them (Table 10)."""
    qk_norm: bool = True
    """Head-wise layer normalisation of queries and keys (Section 4, Table 1)."""
    time_conditioning: TimeConditioning = "embedding"
    """Diffusion time: an embedding added to every noised token, or a token (Table 1, "T embedding")."""
    text: TextConfig | None = None
    """Text that an image is drawn from, and that describes an image (Section 4.3). null: no text."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.text, dict):  # of a file of settings
            object.__setattr__(self, "text", TextConfig(**self.text))
        elif not isinstance(self.text, TextConfig | None):
            raise ValueError(f"text must be null or a section of settings, got {self.text!r:.30}")
        if self.architecture == "transfusion" and (self.text is None or self.time_conditioning != "embedding"):
            raise ValueError("a transfusion model needs text and time_conditioning embedding")
        if self.class_tokens == 0 and self.text is None:
            raise ValueError("class_tokens must be at least 1 in a model without text, got 0")
        self._check_sizes(("class_tokens", "class_token_repeat") if self.class_tokens else ("class_token_repeat",))

    @property
    def num_class_tokens(self) -> int:
        """Class tokens in the sequence, repeats included."""
        return self.class_tokens * self.class_token_repeat
